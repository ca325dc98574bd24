"""What a circuit of equal pairs shows at given frequencies, and the derivatives of that by every part.

An inner node is at z = -Σ y a / Σ y, so each part has the stamp ã = a + z on the cells. With coils L and windings R

    Y(s) = Σ y ã ãᵀ + E (s L + R)⁻¹ Eᵀ,   Z = Y⁻¹,   S = 4 Z Q Zᴴ,   dZ = -Σ dy (Z ã)(Z ã)ᵀ.

Nothing is larger than the cells are many, so that thousands of spectra with all their derivatives cost seconds.
"""

from itertools import combinations

import numpy as np
from scipy import sparse

from circuits.pairs import Half, inductance_matrix, noise_power, part_gains


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


def mismatched_spectra(
    half: Half, mismatch: np.ndarray, sources: np.ndarray, frequencies: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """`spectra` (draws, f, n, n) and `impedance` (draws, f, n, n) of copies whose pairs are not equal, but nominal.

    `mismatch` δ (draws, pairs) is of the values, (first - second)/(first + second), and `sources` (draws, n) of powers.
    """
    s = 2j * np.pi * frequencies
    Z = _mismatched_impedance(half, mismatch, s)
    n = len(half.power)
    own, other = Z[..., :n, :n], Z[..., :n, n:]
    Q, between = half.power, (half.power * sources)[:, None, None, :]
    cross = (own * between) @ np.conj(np.swapaxes(other, -1, -2))
    S = sum((part * Q) @ np.conj(np.swapaxes(part, -1, -2)) for part in (own, other))
    return 4 * (S + cross + np.conj(np.swapaxes(cross, -1, -2))), own


def _mismatched_impedance(half: Half, mismatch: np.ndarray, s: np.ndarray) -> np.ndarray:
    """Z (draws, f, 2n, 2n) of x (first n) and c: either part of each pair with inner nodes of its own."""
    off = mismatch[:, half.pairs]
    n, coils = half.coils.shape
    Y = np.zeros((len(mismatch), len(s), 4 * n * n), dtype=complex)
    for sign in (1, -1):
        # The mean of a pair is that of its admittances, but of the resistances of switches, which act in series.
        gain = np.where(half.capacitive, 1 + sign * off, np.where(half.series, 1 / (1 + sign * off), 1 - sign * off))
        y = (half.weights * gain)[:, None] * np.where(half.capacitive, s[:, None], 1.0)  # (draws, f, b)
        mesh, stamps = _meshed(half, y, np.concatenate([sign * half.stamps, half.common], axis=1))
        Y += mesh @ (stamps[:, :, None] * stamps[:, None, :] / 2).reshape(len(stamps), -1)
    Y = Y.reshape(len(mismatch), len(s), 2 * n, 2 * n)
    if coils:
        W = np.einsum("fkk->fk", _coil_admittance(half, np.ones(half.exponents.shape[1]), s)[0])
        each = np.einsum("ik,fk,jk->fijk", half.coils, W, half.coils)
        Y[..., :n, :n] += each.sum(axis=-1)
        Y[..., n:, n:] += each.sum(axis=-1)
        between = np.moveaxis(each @ mismatch[:, half.coil_pairs].T, -1, 0)
        Y[..., :n, n:] -= between
        Y[..., n:, :n] -= between
    return np.linalg.inv(Y)


def _meshed(half: Half, y: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same network without inner nodes: admittances (…, b') and stamps (b', n).

    A star of y_k at an inner node is the mesh of y_k y_l / Σ y between its ends.
    """
    signed = half.inner.tocoo()
    at: dict[int, list[tuple[int, float]]] = {}
    for node, branch, sign in zip(signed.row, signed.col, signed.data, strict=True):
        at.setdefault(int(node), []).append((int(branch), sign))
    ends = [(node, k, j, own[k] * a - own[j] * b) for node in at for (k, a), (j, b) in combinations(at[node], 2)]
    direct = np.flatnonzero(abs(half.inner).sum(axis=0) == 0) if at else np.arange(len(own))
    if not ends:
        return y[..., direct], own[direct]
    node, k, j = (np.array([end[i] for end in ends]) for i in range(3))
    total = (abs(half.inner) @ y.reshape(-1, y.shape[-1]).T).T.reshape(*y.shape[:-1], -1)
    mesh = y[..., k] * y[..., j] / total[..., node]
    stamps = np.concatenate([own[direct], np.array([end[3] for end in ends])])
    return np.concatenate([y[..., direct], mesh], axis=-1), stamps


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
