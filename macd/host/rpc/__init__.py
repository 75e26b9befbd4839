"""The agent on a host, and what it reads and sends."""
