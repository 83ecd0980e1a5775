"""Any network of timm as the detector's backbone (``MODEL.BACKBONE.NAME
build_timm_fpn_backbone``)."""

from __future__ import annotations

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from torch import Tensor

from ctmasknet.errors import CTMaskNetError
from ctmasknet.modeling.detector import PaddedFPN

#: Strides in px by Detectron2's names of stages.
STAGES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}


class TimmBackbone(Backbone):
    """The feature maps of a network of timm, named after their strides: ``res2`` (4 px) to
    ``res5`` (32 px)."""

    def __init__(self, name: str, out_features: list[str], freeze_at: int = 0):
        """
        Args:
            name: of the network in timm; it starts from random weights.
            out_features: stages to give out.
            freeze_at: 0 trains everything; 1 to 5 freezes all layers up to the map of stride
                2 ** freeze_at px, running statistics too.

        Raises:
            CTMaskNetError: timm has no such network, or it has no map of a stride that is asked
                for.
        """
        super().__init__()
        try:
            import timm
        except ImportError:
            raise CTMaskNetError(
                "MODEL.BACKBONE.NAME is build_timm_fpn_backbone, which needs timm; pip install timm"
            ) from None
        try:
            self.net = timm.create_model(name, pretrained=False, features_only=True)
        except (RuntimeError, ValueError, AttributeError, AssertionError, TypeError) as error:
            raise CTMaskNetError(
                f"MODEL.TIMM.NAME is {name!r}: timm makes no feature maps of it "
                f"({str(error).splitlines()[0][:120] if str(error) else type(error).__name__}); "
                'choose one of timm.list_models(), such as "tf_efficientnet_lite0"'
            ) from None
        strides = self.net.feature_info.reduction()
        channels = self.net.feature_info.channels()
        lacking = [stage for stage in out_features if STAGES[stage] not in strides]
        if lacking or (freeze_at and 2**freeze_at not in strides):
            key = "MODEL.FPN.IN_FEATURES" if lacking else "MODEL.BACKBONE.FREEZE_AT"
            value = list(out_features) if lacking else freeze_at
            raise CTMaskNetError(
                f"{key} is {value}, but {name} has maps of strides {', '.join(map(str, strides))} "
                "px alone; choose among those"
            )
        self._index = {stage: strides.index(STAGES[stage]) for stage in out_features}
        self._channels_last = bool(getattr(self.net, "output_fmt", "NCHW") == "NHWC")
        self._out_features = list(out_features)
        self._out_feature_strides = {stage: STAGES[stage] for stage in out_features}
        self._out_feature_channels = {s: channels[i] for s, i in self._index.items()}
        modules = self.net.feature_info.module_name()
        last = self._end(modules[max(self._index.values())])
        end = self._end(modules[strides.index(2**freeze_at)]) if freeze_at else 0
        for number, parameter in enumerate(self.net.parameters()):
            # What lies behind the last map that is used gets no gradient
            parameter.requires_grad_(end <= number < last)
        self._frozen = [
            module
            for module in self.net.modules()
            if freeze_at
            and list(module.parameters(recurse=False))
            and not any(p.requires_grad for p in module.parameters(recurse=False))
        ]

    def _end(self, module: str) -> int:
        """How many parameters there are up to the last of a module, in order of the network."""
        prefixes = (f"{module}.", f"{module.replace('.', '_')}.")
        names = [name for name, _ in self.net.named_parameters()]
        found = [number for number, name in enumerate(names) if name.startswith(prefixes)]
        return found[-1] + 1 if found else len(names)

    def train(self, mode: bool = True) -> TimmBackbone:
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> stage -> (B, C, H / stride, W / stride)."""
        maps = self.net(x)
        found = {stage: maps[index] for stage, index in self._index.items()}
        if self._channels_last:
            found = {stage: level.permute(0, 3, 1, 2) for stage, level in found.items()}
        return found


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """FPN over ``MODEL.FPN.IN_FEATURES`` of the network ``MODEL.TIMM.NAME`` with no level above the
    last."""
    stages = list(cfg.MODEL.FPN.IN_FEATURES)
    return PaddedFPN(
        bottom_up=TimmBackbone(cfg.MODEL.TIMM.NAME, stages, cfg.MODEL.BACKBONE.FREEZE_AT),
        in_features=stages,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
