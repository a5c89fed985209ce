"""Local training at one site: plain SGD, DP-SGD, and the contribution to a secure sum."""
