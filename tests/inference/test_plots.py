import dataclasses
import warnings

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from jaxrec.evaluation.reliability import reliability
from jaxrec.inference.plots import plot_interest, plot_reliability


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved, in order."""
    saved = []
    plain = Figure.savefig

    def recorded(figure, *args, **options):
        saved.append(figure)
        return plain(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", recorded)
    return saved


@pytest.fixture(autouse=True)
def strict():
    """Turns warnings into errors: a layout that does not fit and a dropped name only warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # what other tests leave to the garbage collector
        warnings.simplefilter("default", pytest.PytestUnraisableExceptionWarning)
        yield


def drawn(path):
    """The image of a PNG file, after checking that it is not empty."""
    image = imread(path)
    assert image.std() > 0.05
    assert min(image.shape[:2]) > 300
    return image


def outcomes():
    random = np.random.default_rng(0)
    probabilities = 10 ** random.uniform(-4, -0.3, (200, 10))
    return probabilities, random.random(probabilities.shape) < probabilities


def interest(num_events, num_entities):
    weights = np.random.default_rng(0).random((num_events, num_entities))
    return weights / weights.sum(axis=1, keepdims=True)


def legend_texts(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def tick_texts(figure):
    return [label.get_text() for label in figure.axes[0].get_xticklabels()]


def outside(figure):
    """Boxes of texts that reach beyond the figure by more than two pixels, a rounding."""
    figure.draw_without_rendering()
    axes = figure.axes[0]
    texts = [*axes.get_xticklabels(), axes.title, axes.xaxis.label, axes.yaxis.label]
    boxes = [text.get_window_extent() for text in texts]
    boxes += [legend.get_window_extent() for legend in figure.legends]
    return [
        box
        for box in boxes
        if min(box.x0, box.y0) < -2
        or box.x1 > figure.bbox.width + 2
        or box.y1 > figure.bbox.height + 2
    ]


def test_reliability_is_drawn_on_logarithmic_axes_with_a_diagonal(tmp_path, figures):
    result = reliability(*outcomes())

    plot_reliability(tmp_path / "reliability.png", result, "test queries")

    drawn(tmp_path / "reliability.png")
    assert [path.name for path in tmp_path.iterdir()] == ["reliability.png"]
    axes = figures[0].axes[0]
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert axes.get_xlim() == axes.get_ylim()
    assert axes.get_title() == "test queries"
    diagonal = axes.lines[0]
    np.testing.assert_array_equal(diagonal.get_xdata(), diagonal.get_ydata())
    np.testing.assert_array_equal(diagonal.get_xdata(), axes.get_xlim())


def test_every_bin_is_drawn_as_a_point_or_as_a_bound(tmp_path, figures):
    result = reliability(*outcomes())
    hit = result.observed > 0
    assert hit.any()
    assert not hit.all()

    plot_reliability(tmp_path / "reliability.png", result, "")

    axes = figures[0].axes[0]
    points, bounds = axes.containers[0].lines[0], axes.lines[-1]
    np.testing.assert_array_equal(points.get_xdata(), result.predicted[hit])
    np.testing.assert_array_equal(points.get_ydata(), result.observed[hit])
    np.testing.assert_array_equal(bounds.get_xdata(), result.predicted[~hit])
    np.testing.assert_array_equal(bounds.get_ydata(), 3 / result.counts[~hit])
    low, high = axes.get_xlim()
    shown = [*points.get_xdata(), *points.get_ydata(), *bounds.get_xdata(), *bounds.get_ydata()]
    assert low < min(shown) < max(shown) < high


@pytest.mark.parametrize("hits", [[True, True, True], [False, False, False]])
def test_reliability_of_hits_alone_or_none_is_drawn(tmp_path, hits):
    result = reliability(np.array([[0.0, 0.1, 0.5]]), np.array([hits]), bins=3)

    plot_reliability(tmp_path / "reliability.png", result, "few")

    drawn(tmp_path / "reliability.png")


def test_probabilities_that_no_logarithm_shows_raise(tmp_path):
    result = reliability(np.zeros((1, 3)), np.zeros((1, 3), bool))

    with pytest.raises(ValueError, match="all probabilities are 0"):
        plot_reliability(tmp_path / "reliability.png", result, "none")
    assert list(tmp_path.iterdir()) == []


def test_a_plot_is_replaced_by_the_next_one(tmp_path):
    path, result = tmp_path / "reliability.png", reliability(*outcomes())
    plot_reliability(path, result, "first")
    first = path.read_bytes()

    plot_reliability(path, dataclasses.replace(result, observed=result.observed[::-1]), "second")

    drawn(path)
    assert path.read_bytes() != first


@pytest.mark.parametrize(("num_events", "num_entities"), [(1, 1), (5, 8), (50, 8), (8, 20)])
def test_no_text_of_an_interest_plot_is_cut(tmp_path, figures, num_events, num_entities):
    names = [f"Beauty > Tools and Accessories > Nail Tools {i}" * 2 for i in range(num_entities)]
    titles = [f"Nail Art Stamping Kit with Extra Plates, number {i}" for i in range(num_events)]
    weights = interest(num_events, num_entities)

    for events in (titles, None):
        plot_interest(
            tmp_path / "interest.png",
            np.arange(100, 100 + num_events),
            weights,
            names,
            events,
            "The interest of one user in brands and categories, " * 3,
        )

    drawn(tmp_path / "interest.png")
    assert [path.name for path in tmp_path.iterdir()] == ["interest.png"]
    assert [outside(figure) for figure in figures] == [[], []]


def test_long_titles_of_events_do_not_squeeze_the_lines(tmp_path, figures):
    for events in (None, ["a very long title of an item"] * 5):
        plot_interest(tmp_path / "a.png", range(5), interest(5, 3), list("abc"), events, "")

    bare, titled = (figure.axes[0].get_window_extent().height for figure in figures)
    assert titled == pytest.approx(bare, rel=0.2)


@pytest.mark.parametrize("events", [None, ["soap"] * 50])
def test_neighbouring_events_have_labels_that_do_not_touch(tmp_path, figures, events):
    plot_interest(tmp_path / "a.png", range(1000, 1050), interest(50, 3), list("abc"), events, "")

    figures[0].draw_without_rendering()
    ticks = figures[0].axes[0].get_xticklabels()
    apart = ticks[1].get_window_extent().x0 - ticks[0].get_window_extent().x0
    height = ticks[0].get_fontsize() * figures[0].dpi / 72
    slope = np.radians(ticks[0].get_rotation())
    assert apart * np.sin(slope) > height


def test_lines_are_listed_by_their_last_weight(tmp_path, figures):
    weights = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])

    plot_interest(tmp_path / "a.png", [7, 8], weights, ["soap", "nails", "hair"], None, "user u01")

    assert legend_texts(figures[0]) == ["hair", "nails", "soap"]
    listed = dict(zip(legend_texts(figures[0]), figures[0].axes[0].lines, strict=True))
    np.testing.assert_array_equal(listed["soap"].get_ydata(), [0.7, 0.1])
    np.testing.assert_array_equal(listed["hair"].get_ydata(), [0.1, 0.6])
    assert tick_texts(figures[0]) == ["7", "8"]


def test_long_titles_are_shortened_and_keep_their_position(tmp_path, figures):
    events = ["Shampoo", "Conditioner  for\nhair that is dry and long and grey"]

    plot_interest(tmp_path / "a.png", [41, 42], interest(2, 2), ["a", "b"], events, "")

    assert tick_texts(figures[0]) == ["Shampoo  41", "Conditioner for hair that i…  42"]


def test_texts_are_shown_as_they_are(tmp_path, figures):
    """Dollar signs start no formula, and names with a leading underscore are listed."""
    names = ["$5 - $10_x", "_private", ""]

    plot_interest(tmp_path / "a.png", [1], np.array([[3.0, 2.0, 1.0]]), names, ["$x_1$"], "$y^2$")

    assert legend_texts(figures[0]) == [r"\$5 - \$10_x", "_private", ""]
    assert tick_texts(figures[0]) == [r"\$x_1\$  1"]
    assert figures[0].axes[0].get_title() == r"\$y^2\$"


def test_every_line_has_its_own_colour_and_marker(tmp_path, figures):
    names = [str(number) for number in range(70)]

    plot_interest(tmp_path / "a.png", [1, 2], interest(2, 70), names, None, "")

    looks = {(line.get_color(), line.get_marker()) for line in figures[0].axes[0].lines}
    assert len(looks) == 70


def test_weights_below_zero_are_not_cut(tmp_path, figures):
    plot_interest(tmp_path / "a.png", [1, 2], -interest(2, 3), list("abc"), None, "")
    plot_interest(tmp_path / "b.png", [1, 2], interest(2, 3), list("abc"), None, "")

    below, above = (figure.axes[0].get_ylim()[0] for figure in figures)
    assert below < -interest(2, 3).max()
    assert above == 0


def test_interest_that_does_not_fit_raises(unchecked, tmp_path):
    path, weights = tmp_path / "a.png", interest(3, 2)

    with pytest.raises(ValueError, match=r"\(3, 2\) for 2 positions, no events and 2 names"):
        plot_interest(path, [1, 2], weights, ["a", "b"], None, "")
    with pytest.raises(ValueError, match=r"\(3, 2\) for 3 positions, no events and 1 names"):
        plot_interest(path, [1, 2, 3], weights, ["a"], None, "")
    with pytest.raises(ValueError, match=r"\(3, 2\) for 3 positions, 1 events and 2 names"):
        plot_interest(path, [1, 2, 3], weights, ["a", "b"], ["x"], "")
    with pytest.raises(ValueError, match=r"weights of shape \(0, 2\)"):
        plot_interest(path, [], weights[:0], ["a", "b"], [], "")
    with pytest.raises(ValueError, match=r"weights of shape \(2,\)"):
        plot_interest(path, [1, 2], weights[0], ["a", "b"], None, "")
    weights[1, 0] = np.nan
    with pytest.raises(ValueError, match="weight of 'a' after event 1 is not finite"):
        plot_interest(path, [1, 2, 3], weights, ["a", "b"], None, "")
    assert list(tmp_path.iterdir()) == []
