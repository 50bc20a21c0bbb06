"""Forward paths through a model: packed, padded or single."""
