"""A CUDA card of the mind: true shapes, types and devices on a CPU build of torch, without a byte of a tensor.

torch's FakeTensorMode knows what a tensor of device `cuda` would be. A stub tells torch that a card is there, and
answers stand in where the code asks a tensor for its values. What runs is the project's own code. Seen are devices,
types, live bytes, kernels, bytes moved, operations and host synchronisations; neither time nor numbers.
"""
