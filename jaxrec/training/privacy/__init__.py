"""User-level differential privacy: DP-SGD (Abadi et al., arXiv:1607.00133) over users."""
