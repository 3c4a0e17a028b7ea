"""The Bradley–Terry projection: the reward that explains a game's preferences best under a policy's pairs.

Shapes: ``P`` (..., n, n), ``policy`` and the reward (..., n), in nats.
"""

from array_api_compat import array_namespace, device

from nashpo.core.policies import Array

_STEPS = 100
_TOLERANCE = 1e-13


def _strongly_connected(xp: object, edges: Array, wanted: Array) -> Array:
    """Whether i reaches j for every wanted pair, by squaring the reachability matrix; shape (...)."""
    reach = edges
    for _ in range(max(1, (int(edges.shape[-1]) - 1).bit_length())):
        reach = xp.astype(xp.matmul(reach, reach) > 0, xp.float64)  # type: ignore[attr-defined]
    return xp.all(xp.all((reach > 0) | ~wanted, axis=-1), axis=-1)  # type: ignore[attr-defined]


def bradley_terry_projection(P: Array, policy: Array) -> Array:
    """argmin_r −Σ_{y,y'} π(y) π(y') P(y ≻ y') log σ(r(y) − r(y')), with gauge Σ_y π(y) r(y) = 0.

    The population solution of reward modelling on independent pairs from π. Responses that π does not play get 0.
    Damped Newton steps on a convex function; at the solution E_{y'∼π}[P(y ≻ y') − σ(r(y) − r(y'))] = 0 for played y.

    Parameters
    ----------
    P : (..., n, n)
        Win rates.
    policy : (..., n)
        Probabilities.

    Returns
    -------
    (..., n)

    Raises
    ------
    ValueError
        If the projection diverges: some played responses never lose to the others (the graph of positive win rates is
        not strongly connected).

    Notes
    -----
    Source: the Bradley–Terry log-loss of DPO (2305.18290) in expectation.
    """
    xp = array_namespace(P, policy)
    played = policy > 0
    pair = policy[..., :, None] * policy[..., None, :]
    both = played[..., :, None] & played[..., None, :]
    eye = xp.eye(P.shape[-1], dtype=P.dtype, device=device(P))
    edges = xp.astype(both & (P > 0), xp.float64) + eye  # no way leads through a response that is not played
    if not bool(xp.all(_strongly_connected(xp, edges, both))):
        raise ValueError(
            "the Bradley–Terry reward of this game diverges: some responses never lose to the others, so that no finite"
            " reward explains them; give the game a reward, or keep win rates off 0 and 1"
        )
    reward = xp.zeros_like(policy)

    def loss_and_gradient(r: Array) -> tuple[Array, Array, Array]:
        difference = r[..., :, None] - r[..., None, :]
        softplus = xp.logaddexp(xp.zeros_like(difference), -difference)
        model = xp.exp(-softplus)
        loss = xp.sum(xp.sum(pair * P * softplus, axis=-1), axis=-1)
        return loss, xp.sum(pair * (P - model), axis=-1), model

    loss, gradient, model = loss_and_gradient(reward)
    scale = xp.where(played, policy, xp.ones_like(policy))
    for _ in range(_STEPS):
        # Scaled by its diagonal the Hessian is a normalized Laplacian, with eigenvalues in [0, 2] however small π gets;
        # its null vector (the gauge) and the responses that are not played get eigenvalue 1.
        curvature = pair * model * (1 - model) * (1 - eye)
        degree = xp.sum(curvature, axis=-1)
        total = xp.sum(degree, axis=-1, keepdims=True)
        root = xp.sqrt(degree)
        inverse = xp.where(root > 0, 1 / xp.where(root > 0, root, xp.ones_like(root)), xp.zeros_like(root))
        null = root / xp.sqrt(total + xp.astype(total == 0, total.dtype))
        laplacian = eye - inverse[..., :, None] * curvature * inverse[..., None, :]
        system = laplacian + null[..., :, None] * null[..., None, :]
        step = inverse * xp.linalg.solve(system, (inverse * gradient)[..., None])[..., 0]
        size = xp.ones_like(loss)[..., None]
        for _ in range(30):
            trial_loss, trial_gradient, trial_model = loss_and_gradient(reward + size * step)
            worse = (trial_loss > loss + 1e-12 * xp.abs(loss))[..., None]
            if not bool(xp.any(worse)):
                break
            size = xp.where(worse, size / 2, size)
        reward = reward + size * step
        loss, gradient, model = trial_loss, trial_gradient, trial_model
        if float(xp.max(xp.abs(gradient) / scale)) <= _TOLERANCE:
            break
    centre = xp.sum(policy * reward, axis=-1, keepdims=True)
    return xp.where(played, reward - centre, xp.zeros_like(reward))
