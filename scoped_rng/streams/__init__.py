"""What is random: a class for each kind of stream, the registry, and the adapter for the user's objects."""
