"""What is computed: rules, the tracer, and the backends that print and run them. Pure and stateless."""
