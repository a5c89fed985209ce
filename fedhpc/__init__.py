"""fedhpc: one diagnostic model over many hospitals, trained as an HPC batch job. Each MPI rank is one hospital."""

__version__ = "0.1.0"
