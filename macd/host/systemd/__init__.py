"""What macd asks of systemd on a host."""
