"""The papers that the project reproduces: one file per paper with its experiments, claims and figures.

    zhang.py       Zhang: autoencoder, features, CNN, compression, pruning (MNIST)
    dutta.py       Dutta: backpropagation network, CNN, image compression (MNIST)
    narayanam.py   Narayanam: convolutional denoising autoencoder (MNIST)
    panagakis.py   Panagakis: convolutional autoencoder, classifier on its encoder, three sweeps (MNIST)
    yaramsetty.py  Yaramsetty et al.: denoising, stacked autoencoders, baselines (Fashion-MNIST)
    findings/      this project's own experiments, beyond the papers
    command.py     arguments of `lit-mnist reproduce`
    report/        shared code: experiments, claims, `lit-mnist reproduce`, results, tables, drawing

A paper's file has a section for each experiment: what the paper states and what it does not, the settings, the
measurement and the figures, and the `Experiment` with its claims. A new experiment is added to `EXPERIMENTS` at
the end of the file; a new paper is a file here and a name in `report.experiment.PAPERS`.
"""
