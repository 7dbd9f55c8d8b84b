// What the audit log says: who changed what, from where.

/** Who does something: `key_…`, `platform` (DISPATCH_ADMIN_KEY), `jwt:<issuer>:<subject>` or `dispatch` itself. */
export type Actor = {
  readonly actor: string;
  /** The caller's IP address; empty for dispatch itself. */
  readonly address: string;
};

type Detail = Readonly<Record<string, string | number | boolean>>;

/** One entry. `action` is `noun.verb`; `resource` the id of what was changed; `detail` ids and figures, no secrets. */
export type Change = Actor & {
  readonly action: string;
  readonly resource: string;
  readonly detail: Detail;
  /**
   * What is known only when it is done, from what the work returned: it comes on top of `detail`; undefined: nothing was
   * changed, and there is no entry.
   */
  readonly outcome?: (result: unknown) => Detail | undefined;
};

/** dispatch itself. */
export const ITSELF: Actor = { actor: 'dispatch', address: '' };

/** The pseudo-tenant that owns what belongs to no tenant: platform keys, and refusals of keys nobody knows. */
export const PLATFORM = '*';
