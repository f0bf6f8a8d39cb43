"""Three-dimensional parts as identities: read from a library of models, rendered in colour."""
