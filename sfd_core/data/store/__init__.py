"""Arrays on disk, hashed and memory-mapped: shards, the pieces they are made of, their verification."""
