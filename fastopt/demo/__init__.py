"""The command line and what it shows: training on digits, races down surfaces, pictures. Needs the extra `demo`."""
