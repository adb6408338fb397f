"""The service: everything that touches the outside."""
