"""Response of a circuit of equal pairs: impedance, spectra and covariance, with derivatives by every part.

An inner node is at z = -Σ y a / Σ y, so each part has the stamp ã = a + z on the cells. With coils L and windings R

    Y(s) = Σ y ã ãᵀ + E (s L + R)⁻¹ Eᵀ,   Z = Y⁻¹,   S = 4 Z Q Zᴴ,   dZ = -Σ dy (Z ã)(Z ã)ᵀ.

No matrix is larger than the number of cells, so that thousands of spectra with all their derivatives cost seconds.

The covariance of the readings is the integral of their spectrum. In ln f the integrand is smooth and decays at both
ends, so the plain sum converges exponentially: with poles at an angle θ from the frequency axis the error is
e^{-2πθ/step}. Beyond the ends the spectrum goes as f² (as 1 on a resistive board) and f⁻², which closes the tails.
"""

import numpy as np
from scipy import sparse

from circuits.model.pairs import Half, half_circuit, inductance_matrix, noise_power, part_gains
from circuits.ou import drift

BELOW, ABOVE = 1e-3, 1e4  # of the lowest and the highest pole
DIGITS = 20.0  # natural logarithm of one over the error
ROUGH = 10.0  # the same, where a rough integral is enough


def impedance(half: Half, theta: np.ndarray, s: np.ndarray) -> np.ndarray:
    """Z (f, n, n) [ohm] between the readings at complex frequencies s (f,) [1/s]."""
    y, stamps = _branches(half, theta, s)
    return np.linalg.inv(_admittance(half, theta, s, y, half.stamps, stamps))


def spread_stamps(half: Half, theta: np.ndarray, s: np.ndarray) -> np.ndarray:
    """Stamps ã (f, b, n) of all branches on the cells."""
    return _branches(half, theta, s)[1]


def spectra(half: Half, theta: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """One-sided cross spectral density of the readings, (f, n, n) [V²/Hz]."""
    Z = impedance(half, theta, 2j * np.pi * frequencies)
    return 4 * (Z * noise_power(half, theta)) @ np.conj(np.swapaxes(Z, -1, -2))


def spectra_and_slopes(
    half: Half, theta: np.ndarray, frequencies: np.ndarray, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """`spectra` and their derivatives by every parameter, (f, n, n, parameters).

    With `weights` (f,) both are summed over the frequencies: (n, n) and (n, n, parameters), real part.
    """
    s = 2j * np.pi * frequencies
    Z, left, right, terms = _slopes(half, theta, s)
    Q = noise_power(half, theta)
    ZQ = Z * Q
    S = 4 * ZQ @ np.conj(np.swapaxes(Z, -1, -2))
    V = 4 * right @ (Q[:, None] * np.conj(np.swapaxes(Z, -1, -2)))  # (f, q, n)
    n = Z.shape[-1]
    if weights is None:
        each = np.einsum("fiq,fqj->fijq", left, V)
        own = 4 * np.einsum("fik,k,fjk->fijk", Z, Q, np.conj(Z))
        slopes = (each.reshape(-1, each.shape[-1]) @ terms).reshape(*S.shape, -1)
        slopes = slopes + np.conj(np.swapaxes(slopes, 1, 2))
        return S, slopes + own @ (half.power_exponents / theta)
    each = np.matmul((left * weights[:, None, None]).transpose(2, 1, 0), V.transpose(1, 0, 2)).real  # (q, n, n)
    slopes = (terms.T @ each.reshape(len(each), n * n)).T.reshape(n, n, -1)
    own = 4 * np.einsum("f,fik,k,fjk->ijk", weights, Z, Q, np.conj(Z), optimize=True).real
    total = np.einsum("f,fij->ij", weights, S).real
    return total, slopes + np.swapaxes(slopes, 0, 1) + own @ (half.power_exponents / theta)


def impedance_slopes(half: Half, theta: np.ndarray, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`impedance` and its derivatives by every parameter, (f, n, n, parameters)."""
    Z, left, right, terms = _slopes(half, theta, s)
    each = np.einsum("fiq,fqj->fijq", left, right)
    return Z, (each.reshape(-1, each.shape[-1]) @ terms).reshape(*Z.shape, -1)


def _branches(half: Half, theta: np.ndarray, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Admittances (f, b) and stamps ã (f, b, n)."""
    y = half.weights * part_gains(half.exponents, theta) * np.where(half.capacitive, s[:, None], 1.0)
    return y, _starred(half, y, half.stamps)


def _starred(half: Half, y: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Stamps ã (…, b, n) of branches of admittances y (…, b) with the stamps `own` (b, n) on the cells."""
    inner, b = half.inner.shape
    if not inner:
        return np.broadcast_to(own.astype(complex), (*y.shape, own.shape[1]))
    flat = y.reshape(-1, b)
    current = half.inner @ (flat.T[:, :, None] * own[:, None, :]).reshape(b, -1)
    total = abs(half.inner) @ flat.T  # (i, draws f)
    z = -current.reshape(inner, len(flat), -1) / total[..., None]
    back = (half.inner.T @ z.reshape(inner, -1)).reshape(b, len(flat), -1)
    return (own[:, None, :] + back).swapaxes(0, 1).reshape(*y.shape, -1)


def _admittance(
    half: Half, theta: np.ndarray, s: np.ndarray, y: np.ndarray, own: np.ndarray, stamps: np.ndarray
) -> np.ndarray:
    Y = (own.T * y[:, None, :]) @ stamps
    if half.coils.size:
        Y = Y + half.coils @ _coil_admittance(half, theta, s)[0] @ half.coils.T
    return (Y + np.swapaxes(Y, -1, -2)) / 2


def _coil_admittance(half: Half, theta: np.ndarray, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    L = inductance_matrix(half, theta)
    return np.linalg.inv(s[:, None, None] * L + np.diag(half.winding * part_gains(half.winding_exponents, theta))), L


def _slopes(
    half: Half, theta: np.ndarray, s: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, sparse.csr_array]:
    """Z, and factors (f, n, q), (f, q, n) and (q, parameters) with dZ/dθ_p = Σ_q left_q right_q terms_qp."""
    y, stamps = _branches(half, theta, s)
    Z = np.linalg.inv(_admittance(half, theta, s, y, half.stamps, stamps))
    reach = stamps @ Z  # (f, b, n), Z is symmetric
    left, right, terms = [-np.swapaxes(reach * y[..., None], 1, 2)], [reach], [half.exponents]
    if half.coils.size:
        W, L = _coil_admittance(half, theta, s)
        WZ = W @ half.coils.T @ Z  # (f, l, n)
        LWZ = L @ WZ
        turned = np.swapaxes(WZ, 1, 2)
        # d ln L of a coil moves L by (E L + L E)/2, E = 1 at that coil.
        left += [turned * (s / 2)[:, None, None], np.swapaxes(LWZ, 1, 2) * (s / 2)[:, None, None]]
        right += [LWZ, WZ]
        terms += [half.coil_exponents, half.coil_exponents]
        left.append(turned * (half.winding * part_gains(half.winding_exponents, theta)))
        right.append(WZ)
        terms.append(half.winding_exponents)
    factors = sparse.csr_array(np.concatenate(terms) / theta)
    return Z, np.concatenate(left, axis=2), np.concatenate(right, axis=1), factors


def nodes_and_weights(half: Half, digits: float = DIGITS) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies (f,) and weights (f,) [Hz] with ∫₀^∞ S df = Σ weight S, for the poles at nominal parts."""
    poles = np.linalg.eigvals(drift(half_circuit(half, np.ones(half.exponents.shape[1]))))
    angle = np.arctan2(poles.real, np.abs(poles.imag)).min()
    low, high = np.abs(poles).min() * BELOW / (2 * np.pi), np.abs(poles).max() * ABOVE / (2 * np.pi)
    count = int(np.ceil(np.log(high / low) * digits / (2 * np.pi * angle))) + 1
    frequency = np.geomspace(low, high, count)
    step = np.log(high / low) / (count - 1)
    weights = np.full(count, step)
    weights[0] += step / np.expm1(step * (3 if half.coils.size else 1))
    weights[-1] += step / np.expm1(step)
    return frequency, weights * frequency


def covariance_and_slopes(half: Half, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Covariance of the readings (n, n) [V²] and its derivatives by every parameter (n, n, parameters)."""
    frequency, weights = nodes_and_weights(half)
    return spectra_and_slopes(half, theta, frequency, weights)
