"""The laboratory, a page that runs our rules in the browser: `python -m fastopt.demo.laboratory OUT.html` writes it."""
