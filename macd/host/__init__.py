"""What runs ON the hosts: shipped over SSH each time, stdlib only, Python 3.9 or newer."""
