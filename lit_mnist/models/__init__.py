"""One file per architecture: its network and its LightningModule.

Each file found here is imported, so that its class can be named on the command line without its path.
"""

import importlib
import pkgutil

from lit_mnist.models.autoencoder import Autoencoder
from lit_mnist.models.base import LitModel
from lit_mnist.models.classifier import Classifier
from lit_mnist.models.cnn import CNN
from lit_mnist.models.dense_autoencoder import DenseAutoencoder

for _module in pkgutil.iter_modules(__path__, prefix=f"{__name__}."):
    importlib.import_module(_module.name)

__all__ = ["CNN", "Autoencoder", "Classifier", "DenseAutoencoder", "LitModel"]
