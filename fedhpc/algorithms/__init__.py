"""What a round is: federated averaging (Algorithm 1), its secure form, and the two baselines."""
