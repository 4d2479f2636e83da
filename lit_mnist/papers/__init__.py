"""The papers that the project reproduces: one file per paper with its experiments, claims and figures.

    zhang.py       Zhang: autoencoder, features, CNN, compression, pruning (MNIST)
    dutta.py       Dutta: backpropagation network, CNN, image compression (MNIST)
    narayanam.py   Narayanam: convolutional denoising autoencoder (MNIST)
    panagakis.py   Panagakis: convolutional autoencoder, classifier on its encoder, three sweeps (MNIST)
    yaramsetty.py  Yaramsetty et al.: denoising, stacked autoencoders, baselines (Fashion-MNIST)
    findings/      what we found beyond the papers, as experiments of our own
    command.py     arguments of `lit-mnist reproduce`
    report/        what all of them share: experiments, claims, `lit-mnist reproduce`, results, tables, drawing

A paper's file has a section for each experiment: what the paper says and leaves open, the settings, how numbers
are measured and drawn, and the `Experiment` with its claims. A new one is added to `EXPERIMENTS` at the end of the
file; a new paper is a file here and a name in `report.experiment.PAPERS`.
"""
