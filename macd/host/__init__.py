"""What runs ON the hosts: shipped over SSH each time and standard library only."""
