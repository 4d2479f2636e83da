"""Every system of five papers on MNIST and Fashion-MNIST, in PyTorch Lightning, tracked in MLflow."""

__version__ = "0.1.0"
