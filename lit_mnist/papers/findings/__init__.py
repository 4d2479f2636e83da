"""What we found beyond the papers, as experiments: `lit-mnist reproduce findings/momentum` runs the first.

    momentum.py    why momentum 0.99 fails on the autoencoder's features (Zhang)
    phase.py       which learning rates and momenta work: accuracy over both (Zhang)
    decompress.py  images restored from the features of a CNN (Zhang)
    denoiser.py    how good a denoiser can be: empirical Bayes beside the autoencoders (Yaramsetty)
    lottery.py     how much the choice of the labelled images decides (Yaramsetty)

Their claims are our own hypotheses, judged by the same rules; no paper states them.
"""

from lit_mnist.papers.findings.decompress import DECOMPRESS
from lit_mnist.papers.findings.denoiser import DENOISER
from lit_mnist.papers.findings.lottery import LOTTERY
from lit_mnist.papers.findings.momentum import MOMENTUM
from lit_mnist.papers.findings.phase import PHASE

EXPERIMENTS = (MOMENTUM, PHASE, DECOMPRESS, DENOISER, LOTTERY)
