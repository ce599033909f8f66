"""The memory that a training step needs at its peak."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def training_memory(network: nn.Module, images: Tensor, labels: Tensor) -> int:
    """Bytes at the end of a forward pass in training: parameters, gradients, momentum, buffers, and what is saved for
    the backward pass, each piece of memory once.

    On a GPU torch's own count of the peak over a whole step would hold workspaces of its kernels too; this counts what
    the network needs, the same on every device.
    """
    images = images.clone()  # not the memory of a larger batch that these are a part of
    saved: dict[int, int] = {}
    own = {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), *network.buffers())}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    was_training = network.training
    network.train()
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = F.cross_entropy(network(images), labels)
    finally:
        network.train(was_training)
    del loss
    parameters = sum(each.numel() * each.element_size() for each in network.parameters())
    buffers = sum(each.numel() * each.element_size() for each in network.buffers())
    return 3 * parameters + buffers + sum(saved.values())
