"""Before any training: does every rank stand where it should, with what it needs? One message a problem."""
