"""Every objective against its formula, one token at a time in float64; and every objective with every rule on a small model."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import copy_of, llama_problem

from ngdiff import TwoTaskOptimizer, objectives, rules
from ngdiff.objectives import IGNORE

VOCABULARY, HIDDEN = 13, 6
# Sums of a few dozen terms of logits up to 30: each rounded by 2^-53 of at most 1e3, with exponents up to 5 and beta up to 9.
TOLERANCE = 1e-11


def log_softmax(logits):
    largest = max(logits)
    total = largest + math.log(math.fsum(math.exp(x - largest) for x in logits))
    return [x - total for x in logits]


def log_sigmoid(x):
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def answers(logits, labels):
    """Row by row, the scored tokens as (logits that predict it, its id, position)."""
    return [
        [(row[t - 1], ids[t], t - 1) for t in range(1, len(ids)) if ids[t] != -100]
        for row, ids in zip(logits.tolist(), labels.tolist(), strict=True)
    ]


def mean(values):
    values = list(values)
    return math.fsum(values) / len(values)


def row_sums(logits, labels):
    return [math.fsum(log_softmax(x)[y] for x, y, _ in row) for row in answers(logits, labels)]


def tokens(logits, labels):
    return [token for row in answers(logits, labels) for token in row]


def softmax(logits):
    return [math.exp(x) for x in log_softmax(logits)]


def slow_npo(logits, labels, reference, beta):
    differences = [a - b for a, b in zip(row_sums(logits, labels), reference.tolist(), strict=True)]
    return 2 / beta * mean(log_sigmoid(-beta * d) for d in differences)


def slow_simnpo(logits, labels, beta, delta):
    lengths = [len(row) for row in answers(logits, labels)]
    per_token = [-s / n for s, n in zip(row_sums(logits, labels), lengths, strict=True)]
    return 2 / beta * mean(log_sigmoid(beta * (x - delta)) for x in per_token)


def slow_weighted(logits, labels, weight):
    terms = [log_softmax(x)[y] for x, y, _ in tokens(logits, labels)]
    return mean(weight(math.exp(lp)) * -lp for lp in terms)


def slow_undial(logits, labels, teacher, strength):
    losses = []
    for (x, y, _), (t, _, _) in zip(tokens(logits, labels), tokens(teacher, labels), strict=True):
        target = softmax([v - strength * (i == y) for i, v in enumerate(t)])
        losses.append(-math.fsum(p * lp for p, lp in zip(target, log_softmax(x), strict=True)))
    return -mean(losses)


def slow_ceu(logits, labels):
    losses = []
    for x, y, _ in tokens(logits, labels):
        others = [math.exp(v - max(x)) * (i != y) for i, v in enumerate(x)]
        total = math.fsum(others)
        losses.append(-math.fsum(p / total * lp for p, lp in zip(others, log_softmax(x), strict=True)))
    return -mean(losses)


def slow_kl(logits, labels, reference):
    terms = []
    for (x, _, _), (r, _, _) in zip(tokens(logits, labels), tokens(reference, labels), strict=True):
        before, now = log_softmax(r), log_softmax(x)
        terms.append(math.fsum(math.exp(a) * (a - b) for a, b in zip(before, now, strict=True)))
    return mean(terms)


def slow_distance(activations, labels, target):
    rows = []
    for row, ids, goals in zip(activations.tolist(), labels.tolist(), target.tolist(), strict=True):
        counted = [(h, g) for h, g, y in zip(row, goals, ids, strict=True) if y != -100]
        rows.append(mean(mean((a - b) ** 2 for a, b in zip(h, g, strict=True)) for h, g in counted))
    return mean(rows)


@st.composite
def batches(draw):
    """Logits, labels with a scored token in each row, the logits of a reference."""
    rows, length = draw(st.integers(1, 4)), draw(st.integers(2, 7))
    torch.manual_seed(draw(st.integers(0, 2**16)))
    scale = draw(st.sampled_from([0.0, 1.0, 6.0]))
    logits, reference = (scale * torch.randn(2, rows, length, VOCABULARY)).double()
    labels = torch.randint(VOCABULARY, (rows, length))
    labels[torch.rand(rows, length) < draw(st.sampled_from([0.0, 0.5, 0.9]))] = IGNORE
    labels[:, -1] = torch.randint(VOCABULARY, (rows,))
    return logits, labels, reference


def assert_close(found, expected):
    assert found.shape == ()
    assert abs(float(found) - expected) <= TOLERANCE * max(1.0, abs(expected))


@given(batch=batches(), beta=st.sampled_from([0.1, 0.5]))
def test_npo(batch, beta):
    logits, labels, before = batch
    reference = objectives.answer_log_probs(before, labels)
    assert reference.tolist() == pytest.approx(row_sums(before, labels), rel=1e-12, abs=1e-12)
    assert_close(objectives.npo(logits, labels, reference, beta), slow_npo(logits, labels, reference, beta))


@given(batch=batches(), beta=st.sampled_from([4.5, 1.0]), delta=st.sampled_from([0.0, 0.7]))
def test_simnpo(batch, beta, delta):
    assert_close(objectives.simnpo(*batch[:2], beta, delta), slow_simnpo(*batch[:2], beta, delta))


@given(batch=batches())
def test_idk_nll(batch):
    assert torch.equal(objectives.idk_nll(*batch[:2]), -objectives.nll(*batch[:2]))


@given(batch=batches(), refusals=st.integers(2, 5), beta=st.sampled_from([0.1, 1.0]))
def test_idk_dpo(batch, refusals, beta):
    logits, labels, before = batch
    rows = len(labels)
    other, other_before = torch.randn(2, rows, refusals, VOCABULARY).double()
    other_labels = torch.randint(VOCABULARY, (rows, refusals))
    references = [objectives.answer_log_probs(*pair) for pair in ((other_before, other_labels), (before, labels))]
    found = objectives.idk_dpo(other, other_labels, references[0], logits, labels, references[1], beta)
    sums = [
        row_sums(other, other_labels),
        row_sums(other_before, other_labels),
        row_sums(logits, labels),
        row_sums(before, labels),
    ]
    assert_close(found, 2 / beta * mean(log_sigmoid(beta * (a - b - c + d)) for a, b, c, d in zip(*sums, strict=True)))


@given(batch=batches(), beta=st.sampled_from([1.0, 0.5]))
def test_wga(batch, beta):
    assert_close(objectives.wga(*batch[:2], beta), slow_weighted(*batch[:2], lambda p: p**beta))


@given(batch=batches())
def test_satimp(batch):
    assert_close(objectives.satimp(*batch[:2]), slow_weighted(*batch[:2], lambda p: p**5 * (1 - p)))


@given(batch=batches(), strength=st.sampled_from([10.0, 1.0]))
def test_undial(batch, strength):
    logits, labels, teacher = batch
    assert_close(objectives.undial(logits, labels, teacher, strength), slow_undial(logits, labels, teacher, strength))


@given(batch=batches())
def test_ceu(batch):
    assert_close(objectives.ceu(*batch[:2]), slow_ceu(*batch[:2]))


@given(batch=batches())
def test_kl(batch):
    logits, labels, reference = batch
    assert_close(objectives.kl(logits, labels, reference), slow_kl(logits, labels, reference))
    assert abs(float(objectives.kl(logits, labels, logits))) <= TOLERANCE


@given(batch=batches(), scale=st.sampled_from([2.0, 6.5]))
def test_rmu(batch, scale):
    labels = batch[1]
    activations, before = torch.randn(2, *labels.shape, HIDDEN).double()
    u = torch.rand(HIDDEN).double() + 0.1
    goal = (scale * u / u.norm()).expand_as(activations)
    assert_close(objectives.rmu(activations, labels, u, scale), -slow_distance(activations, labels, goal))
    assert_close(objectives.activation_distance(activations, labels, before), slow_distance(activations, labels, before))


# Gradients: what is taken as a constant, and what is not scored


def fixed(seed=0):
    torch.manual_seed(seed)
    logits = torch.randn(2, 5, VOCABULARY, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(VOCABULARY, (2, 5))
    labels[0, :3] = IGNORE
    return logits, labels, torch.randn(2, 5, VOCABULARY, dtype=torch.float64)


# name -> the objective as a function of logits, labels and a reference's logits
FORGET = {
    "nll": lambda x, y, r: objectives.nll(x, y),
    "npo": lambda x, y, r: objectives.npo(x, y, objectives.answer_log_probs(r, y).detach()),
    "simnpo": lambda x, y, r: objectives.simnpo(x, y),
    "idk_nll": lambda x, y, r: objectives.idk_nll(x, y),
    "idk_dpo": lambda x, y, r: _dpo(x, y, r),
    "wga": lambda x, y, r: objectives.wga(x, y),
    "satimp": lambda x, y, r: objectives.satimp(x, y),
    "undial": lambda x, y, r: objectives.undial(x, y, r),
    "ceu": lambda x, y, r: objectives.ceu(x, y),
    "rmu": lambda x, y, r: objectives.rmu(x, y, torch.linspace(0.1, 1, x.shape[-1], dtype=torch.float64)),
}
RETAIN = {
    "nll": FORGET["nll"],
    "kl": lambda x, y, r: objectives.kl(x, y, r),
    "activations": lambda x, y, r: objectives.activation_distance(x, y, r),
}


def _dpo(x, y, r):
    """The refusal is the answer with every scored token replaced by the next id: the same questions, other answers."""
    other = torch.where(y == IGNORE, y, (y + 1) % x.shape[-1])
    before = [objectives.answer_log_probs(r, labels).detach() for labels in (other, y)]
    return objectives.idk_dpo(x, other, before[0], x, y, before[1])


@pytest.mark.parametrize("name", [name for name in FORGET if name != "rmu"])
def test_the_gradient_is_zero_exactly_where_nothing_is_scored(name):
    logits, labels, reference = fixed()
    FORGET[name](logits, labels, reference).backward()
    scored = torch.tensor([[False, False, True, True, False], [True, True, True, True, False]])
    assert logits.grad.ne(0).any(-1).equal(scored)


@pytest.mark.parametrize("name", ["nll", "npo", "simnpo", "wga", "satimp"])
def test_raising_it_lowers_the_answer(name):
    """One step up the gradient makes the answers less probable: the sign is that of a forget loss."""
    logits, labels, reference = fixed()
    FORGET[name](logits, labels, reference).backward()
    before, after = (objectives.answer_log_probs(x, labels).sum() for x in (logits, logits + 1e-3 * logits.grad))
    assert after < before


@pytest.mark.parametrize("name", ["undial", "ceu"])
def test_raising_it_lowers_an_answer_that_is_known(name):
    logits, labels, _ = fixed()
    known = torch.where(labels == IGNORE, 0, labels)[:, 1:, None]
    with torch.no_grad():
        logits[:, :-1].scatter_add_(-1, known, torch.full_like(known, 6, dtype=torch.float64))
    FORGET[name](logits, labels, logits.detach()).backward()
    before, after = (objectives.answer_log_probs(x, labels).sum() for x in (logits, logits + 1e-3 * logits.grad))
    assert after < before


def test_the_target_of_ceu_is_a_constant():
    """The gradient is that of the cross-entropy to the others' probabilities, which do not move."""
    logits, labels, _ = fixed()
    FORGET["ceu"](logits, labels, None).backward()
    other = logits.detach().clone().requires_grad_()
    mask = labels[:, 1:] != IGNORE
    x, y = other[:, :-1][mask], labels[:, 1:][mask]
    target = x.detach().index_put((torch.arange(len(y)), y), torch.tensor(-math.inf, dtype=x.dtype)).softmax(-1)
    (target * x.log_softmax(-1)).sum(-1).mean().backward()
    assert torch.allclose(logits.grad, other.grad, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", ["npo", "idk_dpo", "undial", "kl", "activations"])
def test_the_reference_is_a_constant(name):
    """Also where it still belongs to a graph, and a second time."""
    logits, labels, before = fixed()
    free = before.clone().requires_grad_()
    graph = 1.0 * free
    answers = objectives.answer_log_probs(graph, labels)
    calls = {
        "npo": lambda x: objectives.npo(x, labels, answers),
        "idk_dpo": lambda x: objectives.idk_dpo(x.flip(-1), labels, answers, x, labels, answers),
        "undial": lambda x: objectives.undial(x, labels, graph),
        "kl": lambda x: objectives.kl(x, labels, graph),
        "activations": lambda x: objectives.activation_distance(x, labels, graph),
    }
    for _ in range(2):
        calls[name](logits).backward()
    assert free.grad is None
    assert logits.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kl_at_its_reference_has_no_gradient_at_all(dtype):
    """Not even of rounding: NGDiff would make a unit vector of it."""
    logits, labels, _ = fixed()
    x = logits.detach().to(dtype).requires_grad_()
    loss = objectives.kl(x, labels, x.detach().clone())
    loss.backward()
    assert not x.grad.any()
    assert abs(loss.item()) <= 1e-6


def test_kl_has_the_gradient_and_the_curvature_of_its_formula():
    logits, labels, reference = fixed()
    mask = labels[:, 1:] != IGNORE

    def plain(x):
        log_q, log_p = (z[:, :-1][mask].log_softmax(-1) for z in (reference, x))
        return (log_q.exp() * (log_q - log_p)).sum(-1).mean()

    v = torch.randn_like(logits)
    both = []
    for loss in (plain, lambda x: objectives.kl(x, labels, reference)):
        x = logits.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(x), x, create_graph=True)
        (product,) = torch.autograd.grad((gradient * v).sum(), x)
        both.append(torch.stack([gradient.detach(), product]))
    assert torch.allclose(*both, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", ["nll", "npo", "simnpo", "wga", "satimp", "undial", "ceu", "kl"])
def test_a_masked_word_changes_nothing(name):
    """A logit of -inf that is no answer, as of a padded vocabulary: value and gradient are finite, and those without it."""
    logits, labels, reference = fixed()
    objective = (FORGET | RETAIN)[name]
    objective(logits, labels, reference).backward()
    pad = torch.full((2, 5, 1), -math.inf, dtype=torch.float64)
    wide = torch.cat([logits.detach(), pad], -1).requires_grad_()
    found = objective(wide, labels, torch.cat([reference, pad], -1))
    found.backward()
    assert torch.allclose(found.detach(), objective(logits, labels, reference).detach(), rtol=1e-12, atol=0)
    assert torch.allclose(wide.grad[..., :-1], logits.grad, rtol=1e-10, atol=1e-15)
    assert not wide.grad[..., -1].any()


@pytest.mark.parametrize("name", ["wga", "satimp"])
def test_an_impossible_answer_weighs_nothing(name):
    logits, labels, _ = fixed()
    with torch.no_grad():
        logits[1, 2, labels[1, 3]] = -math.inf
    loss = FORGET[name](logits, labels, None)
    loss.backward()
    assert loss.detach().isfinite()
    assert logits.grad.isfinite().all()


def test_satimp_keeps_the_digits_of_a_memorised_token():
    """1 - p = 3e-8 in float32, where 1 - exp(log p) has one digit."""
    logits = torch.zeros(1, 2, 2)
    logits[0, 0, 0] = math.log(1 / 3e-8)
    found = objectives.satimp(logits, torch.tensor([[0, 0]]))
    assert float(found) == pytest.approx(3e-8 * 3e-8, rel=0.5)
    lp = float(logits[0, 0].log_softmax(-1)[0])
    assert float(found) == pytest.approx(lp * lp, rel=1e-5)


@pytest.mark.parametrize("size", [2000.0, 1e-30])
def test_rmu_normalises_a_direction_of_any_size(size):
    activations, labels = torch.randn(1, 3, 4096), torch.zeros(1, 3, dtype=torch.long)
    dtype = torch.float16 if size > 1 else torch.float32
    found = objectives.rmu(activations, labels, torch.full((4096,), size, dtype=dtype))
    assert torch.equal(found, objectives.rmu(activations, labels, torch.ones(4096)))


def test_activations_that_do_not_count_may_be_nan():
    activations = torch.randn(2, 4, HIDDEN, dtype=torch.float64)
    activations[0, :2] = math.nan
    activations.requires_grad_()
    labels = torch.zeros(2, 4, dtype=torch.long)
    labels[0, :2] = IGNORE
    loss = objectives.rmu(activations, labels, torch.ones(HIDDEN))
    loss.backward()
    assert loss.detach().isfinite()
    assert activations.grad.isfinite().all()
    assert not activations.grad[0, :2].any()


@pytest.mark.parametrize(("name", "weight"), [("wga", lambda p: p), ("satimp", lambda p: p**5 * (1 - p))])
def test_weights_are_constants(name, weight):
    """The gradient is that of the cross-entropy with fixed weights."""
    logits, labels, _ = fixed()
    FORGET[name](logits, labels, None).backward()
    other = logits.detach().clone().requires_grad_()
    log_probs = other[:, :-1].log_softmax(-1).gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0]
    mask = labels[:, 1:] != IGNORE
    (-log_probs * weight(log_probs.detach().exp()))[mask].mean().backward()
    assert torch.allclose(logits.grad, other.grad, rtol=1e-12, atol=1e-15)


def test_npo_with_a_small_beta_is_the_log_likelihood():
    """2/beta log sigmoid(-beta D) = -2 log 2 / beta - D + O(beta)."""
    logits, labels, reference = (x.detach() for x in fixed())
    before = objectives.answer_log_probs(reference, labels)
    difference = (objectives.answer_log_probs(logits, labels) - before).mean()
    beta = 1e-6
    constant = 2 * math.log(2) / beta
    # The next term is beta D^2 / 4, and float64 leaves 1e-16 of the constant.
    assert float(objectives.npo(logits, labels, before, beta) + constant + difference) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("name", FORGET)
def test_low_precision_is_computed_in_float32(name):
    logits, labels, reference = (x.detach() for x in fixed())
    narrow = logits.bfloat16()
    found, expected = (FORGET[name](x, labels, reference.float()) for x in (narrow, narrow.float()))
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


# Bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, y: objectives.npo(x, y, torch.zeros(3)), r"npo: reference of shape \(3,\); give one log-probability a row"),
        (lambda x, y: objectives.npo(x, y, torch.zeros(2), beta=0.0), r"npo: beta = 0.0 must be > 0"),
        (lambda x, y: objectives.npo(x, torch.full_like(y, IGNORE), torch.zeros(2)), "npo: no scored token"),
        (lambda x, y: objectives.simnpo(x, y.index_fill(0, torch.tensor(1), IGNORE)), "simnpo: row 1 has no scored token"),
        (
            lambda x, y: objectives.undial(x, y, x[:1]),
            r"undial: teacher of shape \(1, 5, 13\) for logits of",
        ),
        (lambda x, y: objectives.kl(x, y, x[..., :1]), r"kl: reference of shape \(2, 5, 1\)"),
        (
            lambda x, y: objectives.nll(x[None], y[None]),
            r"nll: logits of shape \(1, 2, 5, 13\) for labels of",
        ),
        (lambda x, y: objectives.ceu(x[..., :1], torch.zeros_like(y)), "ceu: a vocabulary of 1 has no other token"),
        (lambda x, y: objectives.rmu(x, y, torch.zeros(VOCABULARY)), "rmu: direction of shape"),
        (lambda x, y: objectives.rmu(x, y, torch.full((VOCABULARY,), math.nan)), "rmu: direction of shape"),
        (lambda x, y: objectives.rmu(x, torch.full_like(y, IGNORE), torch.ones(VOCABULARY)), "row 0 has no token that counts"),
        (lambda x, y: objectives.activation_distance(x, y, torch.zeros(2)), r"activation_distance: activations \(2, 5, 13\)"),
        (
            lambda x, y: objectives.idk_dpo(x[:1], y[:1], torch.zeros(1), x, y, torch.zeros(2)),
            "idk_dpo: 1 refusals for 2 answers",
        ),
    ],
)
def test_bad_input_is_one_line(call, message):
    logits, labels, _ = fixed()
    with pytest.raises(ValueError, match=message) as caught:
        call(logits.detach(), labels)
    assert "\n" not in str(caught.value)


# Every objective with every rule


@pytest.fixture(scope="module")
def problem():
    torch.manual_seed(0)
    return llama_problem()


@pytest.mark.parametrize("rule", [*(name for name in rules.names() if name != "munba"), "ngdiff-0.3"])
@pytest.mark.parametrize("forget", FORGET)
def test_every_objective_with_every_rule(problem, forget, rule):
    """A few steps on a small model, with both retain losses in turn: finite, taken, and the model has moved."""
    model = copy_of(problem).model
    torch.manual_seed(1)
    ids = {task: torch.randint(24, (3, 8)) for task in ("retain", "forget")}
    with torch.no_grad():
        before = {task: model(input_ids=x).logits for task, x in ids.items()}
    optimizer = TwoTaskOptimizer(model.parameters(), rule=rule, lr=1e-2)
    start = [p.detach().clone() for p in model.parameters()]
    for retain in RETAIN:
        losses = {}
        for task, objective in (("retain", RETAIN[retain]), ("forget", FORGET[forget])):
            labels = ids[task].clone()
            labels[:, :2] = IGNORE
            with optimizer.task(task):
                losses[task] = objective(model(input_ids=ids[task]).logits, labels, before[task])
                losses[task].backward()
            assert losses[task].detach().isfinite()
        optimizer.step(losses=(losses["retain"], losses["forget"]))
    assert optimizer.skipped_steps == 0
    assert any(not torch.equal(a, b) for a, b in zip(start, model.parameters(), strict=True))
