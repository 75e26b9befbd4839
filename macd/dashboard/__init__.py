"""One page to watch: what every host says of itself, what it did, and what needs a person now."""
