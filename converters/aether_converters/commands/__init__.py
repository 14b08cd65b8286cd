"""What the commands of `aethernet` share, and those that have a module of their own."""
