import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

from ctmasknet.modeling.roi_heads import pad_rows, padding_index, select_ranked


def rows(*scores):
    return torch.tensor([[score, 0.0, 0.0, 0.0, 0.0] for score in scores]).reshape(-1, 5)


class TestPadRows:
    def test_repeats_evenly_and_keeps_order(self):
        padded = pad_rows(rows(0.9, 0.5, 0.1), 7)
        assert padded[:, 0].tolist() == pytest.approx([0.9, 0.9, 0.9, 0.5, 0.5, 0.1, 0.1])

    def test_the_index_tells_which_row_went_where(self):
        index = padding_index(3, 7)
        assert index.tolist() == [0, 0, 0, 1, 1, 2, 2]
        three = rows(0.9, 0.5, 0.1)
        assert torch.equal(pad_rows(three, 7), three[index])
        assert padding_index(0, 2).tolist() == [-1, -1]

    def test_full_list_is_unchanged(self):
        assert torch.equal(pad_rows(rows(0.9, 0.5), 2), rows(0.9, 0.5))

    def test_no_box_gives_zero_rows(self):
        assert torch.equal(pad_rows(rows(), 3), torch.zeros(3, 5))

    def test_ignores_the_random_state(self):
        torch.manual_seed(0)
        first = pad_rows(rows(0.9, 0.5, 0.1), 10)
        torch.manual_seed(1)
        assert torch.equal(first, pad_rows(rows(0.9, 0.5, 0.1), 10))


class TestSelectRanked:
    # Two overlapping boxes (IoU 0.8), one apart, one without height, one outside the image.
    boxes = torch.tensor(
        [[0, 0, 10, 10], [0, 0, 10, 8], [20, 20, 30, 30], [5, 5, 9, 5], [70, 70, 90, 90]],
        dtype=torch.float32,
    )

    def select(self, scores, nms_thresh=0.75, num=10, score_thresh=-0.01):
        """Two classes whose boxes coincide; scores (5, 2)."""
        return select_ranked(
            self.boxes[:, None].expand(-1, 2, -1),
            torch.tensor(scores),
            (64, 64),
            num=num,
            score_thresh=score_thresh,
            nms_thresh=nms_thresh,
        )

    scores = ((0.5, 0.1), (0.6, 0.3), (0.0, 0.2), (0.9, 0.9), (0.8, 0.8))

    def test_ranks_by_score_and_suppresses_within_a_class(self):
        proposal, label = self.select(self.scores)
        # Flat and outside boxes are gone; box 0 falls to box 1 in both classes; score 0.0 stays.
        assert list(zip(proposal.tolist(), label.tolist(), strict=True)) == [
            (1, 0),
            (1, 1),
            (2, 1),
            (2, 0),
        ]

    def test_higher_threshold_keeps_overlapping_boxes(self):
        proposal, _ = self.select(self.scores, nms_thresh=0.85)
        assert proposal.tolist() == [1, 0, 1, 2, 0, 2]

    def test_takes_the_best_only(self):
        proposal, label = self.select(self.scores, num=1)
        assert (proposal.tolist(), label.tolist()) == ([1], [0])

    def test_score_threshold_is_exclusive(self):
        proposal, label = self.select(self.scores, score_thresh=0.3)
        assert (proposal.tolist(), label.tolist()) == ([1], [0])

    def test_nothing_left(self):
        proposal, label = self.select(self.scores, score_thresh=1.0)
        assert len(proposal) == len(label) == 0


class TestRankedBoxROIHeads:
    @pytest.fixture
    def heads(self, tiny_model):
        return tiny_model.roi_heads

    def proposals(self, *boxes):
        instances = Instances((64, 64))
        instances.proposal_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
        return instances

    def test_rows_are_raw_scores_and_deltas(self, heads):
        # Class 1 of proposal 1 scores best, then class 0 of proposal 0.
        logits = torch.tensor([[2.0, -9.0, 0.0], [-9.0, 3.0, 0.0]])
        deltas = torch.arange(16, dtype=torch.float32).reshape(2, 8) / 10
        proposals = [self.proposals([0, 0, 20, 20], [30, 30, 50, 50])]
        found = heads.rank((logits, deltas), proposals)
        assert found.shape == (1, 16, 5)
        score = torch.softmax(logits, dim=1)
        best, second = found[0, 0], found[0, 4]
        assert best.tolist() == pytest.approx([score[1, 1].item(), 1.2, 1.3, 1.4, 1.5])
        assert second.tolist() == pytest.approx([score[0, 0].item(), 0.0, 0.1, 0.2, 0.3])

    @pytest.mark.parametrize(
        ("ranked", "test", "rows", "detections"),
        [
            # IoU for suppression and score above which a box counts, of rows and of detections
            ((0.9, -0.01), (0.5, 0.3), [0.9, 0.8, 0.1], [0.9]),
            ((0.5, -0.01), (0.9, 0.3), [0.9, 0.1], [0.9, 0.8]),
            ((0.9, 0.3), (0.9, 0.05), [0.9, 0.8], [0.9, 0.8, 0.1]),
            ((0.9, 0.85), (0.5, 0.05), [0.9], [0.9, 0.1]),
        ],
    )
    def test_rows_and_detections_have_thresholds_of_their_own(
        self, tiny_cfg, ranked, test, rows, detections
    ):
        """Two boxes of IoU 0.8 and one apart, of one class, with scores 0.9, 0.8 and 0.1."""
        tiny_cfg.MODEL.RANKED_BOXES.NMS_THRESH, tiny_cfg.MODEL.RANKED_BOXES.SCORE_THRESH = ranked
        heads = tiny_cfg.MODEL.ROI_HEADS
        heads.NMS_THRESH_TEST, heads.SCORE_THRESH_TEST = test
        tiny_cfg.MODEL.LESION_CLASSES, heads.NUM_CLASSES = ["lesion"], 1
        heads = build_model(tiny_cfg).eval().roi_heads
        proposals = [self.proposals([0, 0, 20, 20], [0, 0, 20, 16], [30, 30, 50, 50])]
        scores = torch.tensor([0.9, 0.8, 0.1])
        predictions = (torch.stack([scores, 1 - scores], dim=1).log(), torch.zeros(3, 4))
        found = heads.ranked_instances(predictions, proposals)[0].scores
        assert found.tolist() == pytest.approx(rows)
        assert heads.rank(predictions, proposals)[0, :, 0].unique().tolist() == pytest.approx(
            sorted(rows)
        )
        features = {"p3": torch.zeros(1, 32, 8, 8)}
        with torch.no_grad():
            instances = heads.detect(features, predictions, proposals)[0]
        assert instances.scores.tolist() == pytest.approx(detections)

    def test_image_without_proposals_gives_zero_rows(self, heads):
        proposals = [self.proposals(), self.proposals([0, 0, 20, 20])]
        found = heads.rank((torch.zeros(1, 3), torch.zeros(1, 8)), proposals)
        assert torch.equal(found[0], torch.zeros(16, 5))
        assert found[1, :, 0].tolist() == pytest.approx([1 / 3] * 16)

    def test_the_boxes_behind_the_rows_are_decoded_in_their_order(self, heads):
        logits = torch.tensor([[2.0, -9.0, 0.0], [-9.0, 3.0, 0.0]])
        deltas = torch.zeros(2, 8)
        # Class 1 of proposal 1 moves right by its width, out of the image, and doubles its height
        deltas[1, 4:] = torch.tensor([10.0, 0.0, 0.0, 5.0 * torch.log(torch.tensor(2.0))])
        proposals = [self.proposals([0, 0, 20, 20], [30, 30, 50, 50]), self.proposals()]
        found, none = heads.ranked_instances((logits, deltas), proposals)
        rows = heads.rank((logits, deltas), proposals)[0]
        assert len(found) == 4 and len(none) == 0
        expected = [50, 20, 64, 60, 0, 0, 20, 20]
        assert found.pred_boxes.tensor[:2].flatten().tolist() == pytest.approx(expected)
        assert found.pred_classes.tolist()[:2] == [1, 0]
        assert torch.equal(found.scores[padding_index(4, 16)], rows[:, 0])

    def test_gradients_reach_scores_and_deltas(self, heads):
        logits = torch.zeros(1, 3, requires_grad=True)
        deltas = torch.zeros(1, 8, requires_grad=True)
        heads.rank((logits, deltas), [self.proposals([0, 0, 20, 20])]).sum().backward()
        # Rows 0..7 repeat one class, 8..15 the other; every delta counts once a row.
        assert deltas.grad.tolist() == [[8.0] * 8]
        assert logits.grad.abs().sum() > 0

    def test_kept_proposals_give_the_rows_and_gradients_of_all(self, heads):
        generator = torch.Generator().manual_seed(4)
        corners = torch.rand(2, 90, 2, generator=generator) * 40
        sides = 4 + torch.rand(2, 90, 2, generator=generator) * 20
        boxes = torch.cat([corners, corners + sides], dim=2)
        proposals = [*(self.proposals(*image.tolist()) for image in boxes), self.proposals()]
        level = torch.randn(3, 32, 8, 8, generator=generator)
        parameters = [*heads.box_head.parameters(), *heads.box_predictor.parameters()]
        found = []
        for keep in (False, True):
            features = {"p3": level.clone().requires_grad_(True)}
            used = heads.keep_ranked(features, proposals) if keep else proposals
            rows = heads.rank(heads.predict(features, used), used)
            rows.square().sum().backward()
            found.append([rows, features["p3"].grad, *(p.grad for p in parameters)])
            heads.zero_grad()
        assert [len(image) for image in used][2] == 0
        assert all(0 < len(image) <= 16 for image in used[:2])
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
