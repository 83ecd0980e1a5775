"""COVID-CT-Mask-Net as a Detectron2 extension."""
