"""One file per architecture: its network and its LightningModule.

Each file found here is imported, so that its class can be named on the command line without its path.
"""

import importlib
import pkgutil

from lit_mnist.models.autoencoder import Autoencoder
from lit_mnist.models.base import LitModel
from lit_mnist.models.batch_norm_autoencoder import BatchNormAutoencoder
from lit_mnist.models.batch_norm_cnn import BatchNormCNN
from lit_mnist.models.classifier import Classifier
from lit_mnist.models.cnn import CNN
from lit_mnist.models.conv_autoencoder import ConvAutoencoder
from lit_mnist.models.denoising_conv_autoencoder import DenoisingConvAutoencoder
from lit_mnist.models.dense_autoencoder import DenseAutoencoder
from lit_mnist.models.feature_classifier import FeatureClassifier
from lit_mnist.models.mlp import MLP
from lit_mnist.models.stacked_autoencoder import StackedAutoencoder
from lit_mnist.models.stacked_classifier import StackedClassifier
from lit_mnist.models.two_phase_classifier import TwoPhaseClassifier

for _module in pkgutil.iter_modules(__path__, prefix=f"{__name__}."):
    importlib.import_module(_module.name)

__all__ = [
    "CNN",
    "MLP",
    "Autoencoder",
    "BatchNormAutoencoder",
    "BatchNormCNN",
    "Classifier",
    "ConvAutoencoder",
    "DenoisingConvAutoencoder",
    "DenseAutoencoder",
    "FeatureClassifier",
    "LitModel",
    "StackedAutoencoder",
    "StackedClassifier",
    "TwoPhaseClassifier",
]
