"""Bytes between ranks: MPI, TLS 1.3, the egress log and the search for pixels. All that leaves a site passes here."""
