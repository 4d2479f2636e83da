"""The architectures: one file each, with the network and its LightningModule.

Classifiers:

- `cnn.py`: convolutions and one linear layer (Zhang).
- `batch_norm_cnn.py`: convolutions with batch norm and dropout, then dense layers (Dutta).
- `mlp.py`: dense layers (Dutta).
- `feature_classifier.py`: dense layers on an autoencoder's encoder, frozen or not (Zhang).
- `two_phase_classifier.py`: the same, with the encoder frozen for the first epochs (Panagakis).
- `stacked_classifier.py`: one layer on stacked autoencoders, and their fine-tuning (Yaramsetty).

Autoencoders:

- `dense_autoencoder.py`: dense layers (Zhang, Dutta, Yaramsetty).
- `conv_autoencoder.py`: strided convolutions (Dutta).
- `denoising_conv_autoencoder.py`: convolutions and max pooling (Narayanam).
- `batch_norm_autoencoder.py`: convolutions with batch norm (Panagakis).
- `stacked_autoencoder.py`: layers trained one after another (Yaramsetty).

Also `pruning.py`, which removes redundant neurons from a trained `DenseAutoencoder`, and `common/`, the code that
the architectures share.

To understand one architecture, read its file, and `common/classifier.py` or `common/autoencoder.py` for the loss.
The optimiser, schedule and logging of all of them are in `common/base.py`, and the averaging of metrics in
`common/metrics.py`.

Every file in this folder is imported, so that the command line knows its classes by name (`--model CNN`): a new
architecture is a new file.
"""

import importlib
import pkgutil

from lit_mnist.errors import UserError
from lit_mnist.models.batch_norm_autoencoder import BatchNormAutoencoder
from lit_mnist.models.batch_norm_cnn import BatchNormCNN
from lit_mnist.models.cnn import CNN
from lit_mnist.models.common.autoencoder import Autoencoder
from lit_mnist.models.common.base import LitModel
from lit_mnist.models.common.classifier import Classifier
from lit_mnist.models.conv_autoencoder import ConvAutoencoder
from lit_mnist.models.denoising_conv_autoencoder import DenoisingConvAutoencoder
from lit_mnist.models.dense_autoencoder import DenseAutoencoder
from lit_mnist.models.feature_classifier import FeatureClassifier
from lit_mnist.models.mlp import MLP
from lit_mnist.models.stacked_autoencoder import StackedAutoencoder
from lit_mnist.models.stacked_classifier import StackedClassifier
from lit_mnist.models.two_phase_classifier import TwoPhaseClassifier

for _found in pkgutil.iter_modules(__path__, prefix=f"{__name__}."):
    _module = importlib.import_module(_found.name)
    # So that `lit_mnist.models.NAME` works for the class of a new file as well.
    for _name, _class in vars(_module).items():
        is_model = isinstance(_class, type) and issubclass(_class, LitModel)
        if not is_model or _class.__module__ != _module.__name__:  # imported there
            continue
        if globals().setdefault(_name, _class) is not _class:
            raise UserError(f"{_module.__file__}: there is a model {_name} already: choose another name")

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
