"""The production loop: closed bars in, one signal line each out, whatever the models do."""
