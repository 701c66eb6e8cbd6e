"""Linear probing: the head's rows of the right tokens, fitted by multinomial logistic regression (MeZO).

It shows the training samples to the fit as they are, so it has no privacy guarantee.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from src.engine.head import head_inputs
from src.objectives import AnswerLikelihood
from src.utils import UserError, one_line


def fit_head(model: nn.Module, objective: AnswerLikelihood, *, early_stopping: bool = False) -> None:
    """Overwrites the head's rows of all tokens that are right somewhere, in place.

    Features are the head's inputs where an answer's token is predicted, classes are these tokens. The
    regularisation is chosen among scikit-learn's ten by five-fold cross-validation; there is no intercept, since
    the heads have none. Of two classes the rows become -w/2 and w/2. Tied input embeddings change with the head.

    Args:
        objective: the likelihood of the training samples.
        early_stopping: a looser tolerance and fewer iterations.

    Raises:
        UserError: all samples have the same token, or the fit fails.
    """
    from sklearn.linear_model import LogisticRegressionCV

    features, tokens = features_and_tokens(model, objective)
    classes = tokens.unique()
    if len(classes) < 2:
        raise UserError("linear probing needs at least two different right tokens")
    tolerance, most = (1e-2, 1000) if early_stopping else (1e-4, 5000)
    fit = LogisticRegressionCV(fit_intercept=False, random_state=0, tol=tolerance, max_iter=most)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the library's own, about rare classes and its next versions
            fit.fit(features.double().numpy(), tokens.numpy())
    except ValueError as error:
        raise UserError(f"linear probing cannot be fitted: {one_line(error)}") from error
    rows = torch.from_numpy(fit.coef_)
    if len(rows) == 1:
        rows = torch.cat([-rows, rows]) / 2
    weight = model.get_output_embeddings().weight  # type: ignore[operator]
    with torch.no_grad():
        weight[classes.to(weight.device)] = rows.to(weight)


def features_and_tokens(model: nn.Module, objective: AnswerLikelihood) -> tuple[Tensor, Tensor]:
    """float32 (P, hidden) and int64 (P,) on the CPU: what the head sees, and the token that is right there."""
    batches = objective.micro_batches()
    features = [head_inputs(model, batch).float().cpu() for batch in batches]
    return torch.cat(features), torch.cat([batch.targets.cpu() for batch in batches])
