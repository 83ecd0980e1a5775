"""Published numbers, as printed, each with its source. Percent unless a name says otherwise.

Sources: the paper is "COVID-CT-Mask-Net: Prediction of COVID-19 from CT Scans Using Regional
Features" (Ter-Sarkisov, preprint of 11 November 2020, doi 10.21203/rs.3.rs-104621/v1); later
results are those its code repository states.
"""

from __future__ import annotations

from dataclasses import dataclass

TABLE1, TABLE2, TABLE3 = "paper, Table 1", "paper, Table 2", "paper, Table 3"
REPOSITORY = "authors' code repository, after the paper"
#: What the published classifiers were measured on, by the paper's words.
PUBLISHED_TEST = "COVIDx-CT test split, 21,182 slices"
#: Fingerprints (ctmasknet.engine.record.fingerprint) of the published lists, and slices each.
LISTS = {
    "bd3f3edf6a14d62dc50e2d9dee38f2d44c7d85d98bdce417f4b70a9413fa5192": "COVIDx-CT-1 training list",
    "80fdb80ee22e5da55cea896e28bc8cf2e4177f085184cca1e7545418d22575b9": (
        "COVIDx-CT-1 validation list"
    ),
    "57b130d662205d7e7506ed3cbc8683efae4868fc418a13fcf0c97876f5a6b165": "COVIDx-CT-1 test list",
    "ec7f087bb7a257a19996fde64aa5d582de3bd4fe9f9c0f421caa9eebe3a53ba7": (
        "authors' training list of 3,000 slices"
    ),
    "049fa18f0e2912c6c628fffb9f43369f914a3f64ab5104670637715de52bfa83": (
        "authors' lesion training list"
    ),
    "3e20b50e1ebfaff22d76fadcd21cb49756f47a2f09c828b0adeabe776e069fd9": (
        "authors' lesion validation list"
    ),
}


@dataclass(frozen=True)
class Size:
    """A row of Table 1, as printed ('' where the paper has no entry)."""

    model: str
    parameters: str
    trainable: str
    training: str
    validation: str
    test: str
    ratio: str
    #: Config of this project, where there is one.
    variant: str | None = None
    source: str = TABLE1


#: The paper prints some cells once for the three modes; they are repeated here. 528 of the last row
#: stands in the validation column although the ratio, 90/528, takes it for the training set.
SIZES = (
    Size("Mask R-CNN (segmentation)", "31.78M", "31.78M", "600", "150", "-", "-", "seg"),
    Size("COVID-CT-Mask-Net (heads)", "34.14M", "2.25M", "3K", "20.6K", "21.1K", "7.06", "cls"),
    Size(
        *("COVID-CT-Mask-Net (heads+BN)", "34.14M", "2.36M", "3K", "20.6K", "21.1K", "7.06"),
        "cls_heads_bn",
    ),
    Size(
        *("COVID-CT-Mask-Net (full)", "34.14M", "34.14M", "3K", "20.6K", "21.1K", "7.06"),
        "cls_full",
    ),
    Size("COVIDNet-CT", "1.8M", "1.8M", "60K", "20.6K", "21.1K", "0.353"),
    Size("COVNet", "25.61M", "25.61M", "3K", "370", "438", "0.129"),
    Size("ResNet18 (Butt et al.)", "11.69M", "11.69M", "", "528", "90", "0.17"),
)


@dataclass(frozen=True)
class SliceResult:
    """Sensitivity a class, precision where it is published, and overall accuracy."""

    model: str
    source: str
    accuracy: float
    sensitivity: dict[str, float]
    precision: dict[str, float]
    variant: str | None = None
    measured_on: str = PUBLISHED_TEST
    #: COVID slices, share of the test set.
    prevalence: float | None = None


def _modes(model: str, variant: str, accuracy: float, **classes: tuple[float, float]):
    return SliceResult(
        f"COVID-CT-Mask-Net ({model})",
        TABLE2,
        accuracy,
        {name: pair[0] for name, pair in classes.items()},
        {name: pair[1] for name, pair in classes.items()},
        variant,
    )


MODE_RESULTS = (
    _modes(
        *("heads", "cls", 77.20),
        covid=(76.30, 81.13),
        pneumonia=(71.13, 67.70),
        normal=(82.37, 83.38),
    ),
    _modes(
        *("heads+BN", "cls_heads_bn", 91.66),
        covid=(90.80, 94.75),
        pneumonia=(91.62, 87.08),
        normal=(91.10, 94.33),
    ),
    _modes(
        *("full", "cls_full", 92.22),
        covid=(82.26, 87.01),
        pneumonia=(91.70, 95.22),
        normal=(97.21, 95.33),
    ),
)


def _later(model: str, variant: str, covid: float, pneumonia: float, normal: float, accuracy):
    sensitivity = {"covid": covid, "pneumonia": pneumonia, "normal": normal}
    on = "COVIDx-CT test split"
    return SliceResult(model, REPOSITORY, accuracy, sensitivity, {}, variant, on)


LATER_RESULTS = (
    _later("ResNet-50, merged masks", "cls_r50_merge", 92.68, 96.69, 97.74, 96.33),
    _later("ResNet-50, both masks", "cls", 93.88, 95.06, 96.91, 95.64),
    _later("ResNet-34, truncation 1", "cls_r34_t1_merge", 91.76, 91.70, 92.89, 92.89),
    _later("ResNet-18, truncation 1", "cls_r18_t1_merge", 91.35, 91.63, 96.98, 93.95),
)


def _other(model, covid: float, accuracy: float, prevalence: float, measured_on=PUBLISHED_TEST):
    return SliceResult(model, TABLE3, accuracy, {"covid": covid}, {}, None, measured_on, prevalence)


#: Table 3. Its "Ours" is the heads+BN model.
COMPARED_RESULTS = (
    SliceResult(
        *("COVID-CT-Mask-Net (heads+BN)", TABLE3, 91.66, {"covid": 90.80}, {}, "cls_heads_bn"),
        prevalence=20.0,
    ),
    _other("COVIDNet-CT, 61,782 training slices", 92.49, 97.57, 20.0),
    _other("COVNet", 90.00, 89.04, 30.0, "its own test set, 438 slices"),
    _other("ResNet18 (Butt et al.)", 81.30, 86.70, 35.79, "its own test set, 90 slices"),
)


@dataclass(frozen=True)
class LesionResult:
    """The authors' per-image AP at IoU 0.5, 0.75 and the mean over .50:.05:.95."""

    model: str
    variant: str
    ap50: float
    ap75: float
    ap: float
    source: str = REPOSITORY
    measured_on: str = "authors' lesion validation list, 100 slices"


LESION_RESULTS = (
    LesionResult("ResNet-50, both masks", "seg", 50.20, 41.98, 38.71),
    LesionResult("ResNet-50, merged masks", "seg_r50_merge", 61.92, 45.22, 44.68),
    LesionResult("ResNet-34, truncation 1, merged", "seg_r34_t1_merge", 59.88, 45.06, 44.76),
    LesionResult("ResNet-18, truncation 1, merged", "seg_r18_t1_merge", 49.95, 37.78, 39.32),
)
#: (what, as the paper has it, as its code, its lists or another place of the paper has it)
DISAGREEMENTS = (
    (
        "parameters of the segmentation model",
        "31.78M (Table 1)",
        "31,781,917 is the whole state dict of the authors' model, running statistics included; "
        "its parameters alone are 31,728,744 (31,727,971 here, without rows for background)",
    ),
    (
        "parameters of COVID-CT-Mask-Net",
        "34.14M (Table 1)",
        "34,146,336 is the segmentation model's state dict, mask head included, plus S "
        "(2,364,419); the authors' classifier has no mask head and 31,469,672 parameters",
    ),
    ("trainable parameters, heads", "2.25M (Table 1)", "S has 2,364,419"),
    (
        "trainable parameters, heads+BN",
        "2.36M (Table 1)",
        "S and all batch normalisations have 2,417,539; the authors' code leaves out those of the "
        "shortcuts: 2,409,859",
    ),
    (
        "trainable parameters, full",
        "34.14M (Table 1)",
        "no gradient reaches the RPN nor the mask head from the classifier's loss, and running "
        "statistics are not trained",
    ),
    (
        "lesion slices for training / validation",
        "600 / 150 (Table 1)",
        "500 / 150 (section 2.1); the authors' lists hold 650 / 100",
    ),
    ("COVIDx-CT validation slices", "20.6K (Table 1)", "21,036 (section 2.2 and the list)"),
    (
        "COVIDx-CT test slices",
        "21,182 (abstract, section 2.2, Table 2)",
        "the list holds 21,191; the authors also give 21,192",
    ),
    (
        "sensitivity for normal, heads+BN",
        "91.10 % (Table 2)",
        "92.10 % (abstract), which with the classes of the test list gives the accuracy printed "
        "(91.67 %); 91.10 % gives 91.22 %",
    ),
    (
        "precision of heads+BN",
        "above 90 % for every class (section 4)",
        "87.08 % for pneumonia (Table 2)",
    ),
    ("slices of COVIDx-CT", "104,900 (section 2.2)", "the three lists hold 104,009"),
    (
        "overall accuracy of the later ResNet-34, truncation 1",
        "92.89 % (repository), which is its sensitivity for normal as well",
        "its three sensitivities give 92.24 % with the classes of the test list",
    ),
    (
        "COVID sensitivity of ResNet18 (Butt et al.)",
        "81.30 % (Table 3)",
        "81.2 % (section 1)",
    ),
)
