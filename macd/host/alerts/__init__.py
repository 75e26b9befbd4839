"""What goes quiet or stale on a host, and the messages that the host itself sends about it."""
