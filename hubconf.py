"""Entry points of torch.hub: networks of unified-onehead without an installation.

    import torch
    repo = "unified-onehead/unified-onehead"
    model = torch.hub.load(repo, "unified_onehead", "user/name")  # `source=` is a setting of torch.hub
"""
dependencies = ["torch", "torchvision", "efficientnet_pytorch", "safetensors", "numpy", "PIL", "yaml", "filelock"]


def unified_onehead(source, device=None):
    """A predictor: `model("photo.jpg")` gives boxes, mask and class of one forward pass.

    source: a run's folder, model.pt, a saved folder, an ONNX file, or user/name[@revision] on the Hugging Face Hub.
    device: cpu | cuda | mps; None takes what the machine has. Raises InputError that says what to do.
    """
    from unified_onehead import Predictor
    return Predictor.from_pretrained(source, device=device)


def onehead_network(source, device="cpu"):
    """The bare network, in eval: float32 B x 3 x S x S, ImageNet-normalised, to a UnifiedOutput.

    source, device: as for `unified_onehead`; here the device is the cpu unless you say otherwise.
    """
    from unified_onehead.deploy.share import load_any
    return load_any(source, device)[0]
