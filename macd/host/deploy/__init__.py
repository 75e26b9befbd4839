"""What a host does to bring a release live, prove it, and go back."""
