// What a caller may be. Which calls each role may make is the table in rpc/access.ts.

export const ROLES = ['platform-admin', 'tenant-admin', 'publisher', 'viewer'] as const;
export type KeyRole = (typeof ROLES)[number];

export const isRole = (text: unknown): text is KeyRole => ROLES.some((role) => role === text);
