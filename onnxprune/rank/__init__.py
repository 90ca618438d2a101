"""Layers in two by rank: y = Wx becomes y = U(Vx), with few channels between.

A layer's weight as a matrix, outputs x (inputs and kernel taps), is replaced by a product of two. The first layer is
the old one with fewer outputs, the second maps these to the old outputs at every position. Without data the product is
the nearest of its rank to the weight; a repair makes it the nearest on the layer's inputs (`onnxprune.recover.pairs`).
(M. Jaderberg, A. Vedaldi and A. Zisserman, "Speeding up convolutional neural networks with low rank expansions", BMVC
2014; X. Zhang et al., "Accelerating very deep convolutional networks for classification and detection", PAMI 2016.)
"""
