"""Code that the architectures share.

- `base.py`: `LitModel`, the base of all: optimiser, steps, logging.
- `metrics.py`: running means on the device, over windows of steps and over epochs, and their state in checkpoints.
- `classifier.py`: `Classifier`, the base of classifiers: cross-entropy, accuracy, probabilities.
- `autoencoder.py`: `Autoencoder`, the base of autoencoders: losses, reconstructions.
- `encoder_classifier.py`: `EncoderClassifier`, the base of classifiers on an autoencoder's encoder.
- `layers.py`: layers that several architectures use.
- `optimizers.py`: optimisers and learning-rate schedules by hyperparameters.
- `pretrained.py`: weights taken from another run's checkpoint.
"""
