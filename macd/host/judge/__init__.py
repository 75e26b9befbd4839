"""From signal lines to a verdict. Standard library only, the same here and on a host."""
