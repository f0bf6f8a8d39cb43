"""Characters as identities: drawn from fonts, or by hand."""
