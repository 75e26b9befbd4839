"""Long jobs that a host owns."""
