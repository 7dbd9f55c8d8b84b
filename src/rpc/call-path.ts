// The one path of every call, whichever server it came by: authenticate, find the tenant, run, map the error, count
// and log. Folder's purpose: the contract on the wire. May import everything below it.
import type {
  DescMessage,
  DescMethod,
  DescMethodBiDiStreaming,
  DescMethodUnary,
  DescService,
  MessageInitShape,
  MessageShape,
} from '@bufbuild/protobuf';
import { type Change, PLATFORM } from '../domain/audit.ts';
import { DispatchError } from '../domain/errors.ts';
import { parseTenantId, type TenantId } from '../domain/ids.ts';
import { accessOf, type Scope } from './access.ts';
import { type Authenticate, type Principal, unauthenticated } from './authentication.ts';
import { shownError } from './errors.ts';

/** What a handler knows of its caller. */
export type CallContext = {
  readonly principal: Principal;
  /** The tenant of a `tenant` call; for others, the one the request named, if any. */
  readonly tenantId: TenantId | undefined;
  /** Describes what this caller changes, for the audit log. */
  readonly change: (action: string, resource: string, detail?: Change['detail']) => Change;
  /** False once the caller has gone or its deadline has passed. */
  readonly isLive: () => boolean;
};

/** What a transport knows of a call. */
export type TransportCall = {
  readonly authorization: string | undefined;
  /** The caller's IP address. */
  readonly address: string;
  readonly isLive: () => boolean;
};

/** Handlers of unary methods. */
export type UnaryHandler<I extends DescMessage = DescMessage, O extends DescMessage = DescMessage> = (
  request: MessageShape<I>,
  context: CallContext,
) => Promise<MessageInitShape<O>>;

/** Handlers of streams of requests with a stream of answers, pushed rather than pulled. */
export type StreamHandler<I extends DescMessage = DescMessage, O extends DescMessage = DescMessage> = (
  context: CallContext,
  write: (answer: MessageInitShape<O>) => void,
) => {
  readonly message: (request: MessageShape<I>) => void;
  /** Requests that are not answered yet. */
  readonly outstanding: () => number;
  /** Resolves when every request is answered. */
  readonly end: () => Promise<void>;
};

/** The handlers of a service: one for each of its methods. */
export type ServiceHandlers<S extends DescService> = {
  readonly [M in keyof S['method']]: S['method'][M] extends DescMethodUnary<infer I, infer O>
    ? UnaryHandler<I, O>
    : S['method'][M] extends DescMethodBiDiStreaming<infer I, infer O>
      ? StreamHandler<I, O>
      : never;
};

/** A service with its handlers, for the servers. */
export type BoundService = {
  readonly desc: DescService;
  readonly unary: (method: DescMethod) => UnaryHandler;
  readonly stream: (method: DescMethod) => StreamHandler;
};

/** Binds handlers to a service; the types make sure that none is missing. */
export function bindService<S extends DescService>(desc: S, handlers: ServiceHandlers<S>): BoundService {
  const find = (method: DescMethod) => (handlers as Readonly<Record<string, unknown>>)[method.localName];
  return {
    desc,
    unary: (method) => find(method) as UnaryHandler,
    stream: (method) => find(method) as StreamHandler,
  };
}

export type CallPathDeps = {
  readonly authenticate: Authenticate;
  readonly unavailable: (error: unknown) => DispatchError | undefined;
  /** A caller that is known asked for what it may not have. */
  readonly onDenied: (principal: Principal, method: string, address: string, reason: string) => void;
  /** Called once for each call, with the error that the caller saw, if any. */
  readonly onCall: (
    method: string,
    error: DispatchError | undefined,
    seconds: number,
    tenantId: string,
  ) => void;
  /** Monotonic, in ms. */
  readonly now: () => number;
};

/** How often the credential of a stream is looked at. */
const RECHECK_MS = 4_000;

export type CallPath = ReturnType<typeof createCallPath>;

export function createCallPath(deps: CallPathDeps) {
  const names = new Map<
    DescMethod,
    { readonly full: string; readonly access: ReturnType<typeof accessOf> }
  >();
  function nameOf(method: DescMethod) {
    let name = names.get(method);
    if (name === undefined) {
      name = {
        full: `${method.parent.typeName}/${method.name}`,
        access: accessOf(method.parent.typeName, method.name),
      };
      names.set(method, name);
    }
    return name;
  }

  const principalOf = (call: TransportCall) => deps.authenticate(call.authorization, call.address);

  function contextOf(
    method: DescMethod,
    call: TransportCall,
    principal: Principal,
    requestedTenant: string,
  ): CallContext {
    const { full, access } = nameOf(method);
    const { actor } = principal;
    const { address } = call;
    try {
      if (!access.roles.includes(principal.role)) throw wrongRole(principal, access.roles);
      return {
        principal,
        tenantId: resolveTenant(principal, access.scope, requestedTenant),
        change: (action, resource, detail = {}) => ({ actor, address, action, resource, detail }),
        isLive: call.isLive,
      };
    } catch (error) {
      if (error instanceof DispatchError && error.code === 'PERMISSION_DENIED') {
        deps.onDenied(principal, full, address, error.reason ?? '');
      }
      throw error;
    }
  }

  function end(
    method: DescMethod,
    startedAt: number,
    error: DispatchError | undefined,
    tenantId: string,
  ): void {
    deps.onCall(nameOf(method).full, error, (deps.now() - startedAt) / 1000, tenantId);
  }

  return {
    /** Throws or rejects as calls do for a caller that is not known: for transports that can ask before they read. */
    authenticate: deps.authenticate,

    /**
     * Runs a unary call. The request is decoded once the caller is known: nobody else's bytes are worth the CPU.
     * Rejects with a DispatchError that the caller may see, and with nothing else.
     */
    async unary(
      method: DescMethod,
      handler: UnaryHandler,
      decode: () => MessageShape<DescMessage>,
      call: TransportCall,
    ): Promise<MessageInitShape<DescMessage>> {
      const startedAt = deps.now();
      let tenantId = '';
      try {
        const known = principalOf(call);
        const principal = known instanceof Promise ? await known : known;
        const request = decode();
        tenantId = tenantOfRequest(request);
        const context = contextOf(method, call, principal, tenantId);
        tenantId = context.tenantId ?? '';
        const answer = await handler(request, context);
        end(method, startedAt, undefined, tenantId);
        return answer;
      } catch (error) {
        const shown = shownError(error, deps.unavailable);
        end(method, startedAt, shown, tenantId);
        throw shown;
      }
    },

    /**
     * Opens a stream. Rejects as unary() does; call the result's `closed` when the stream has ended. While messages
     * come the caller's credential is looked at again and again: `fail` is called when it is not good any more.
     */
    async stream(
      method: DescMethod,
      handler: StreamHandler,
      call: TransportCall,
      write: (answer: MessageInitShape<DescMessage>) => void,
      fail: (error: DispatchError) => void,
    ) {
      const startedAt = deps.now();
      try {
        const principal = await principalOf(call);
        const context = contextOf(method, call, principal, '');
        const running = handler(context, write);
        let checkedAt = startedAt;
        const check = async () => {
          try {
            const again = await principalOf(call);
            const same = again.role === principal.role && again.tenantId === principal.tenantId;
            if (!same) fail(unauthenticated('the credential of this stream is another’s now'));
          } catch (error) {
            const shown = shownError(error, deps.unavailable);
            // That it cannot be looked at now is not the caller's fault: the next message tries again.
            if (shown.code === 'UNAUTHENTICATED') fail(shown);
          }
        };
        return {
          ...running,
          message: (request: MessageShape<DescMessage>) => {
            if (deps.now() - checkedAt > RECHECK_MS) {
              checkedAt = deps.now();
              void check();
            }
            running.message(request);
          },
          closed: (error: DispatchError | undefined) => end(method, startedAt, error, ''),
        };
      } catch (error) {
        const shown = shownError(error, deps.unavailable);
        end(method, startedAt, shown, '');
        throw shown;
      }
    },
  };
}

function tenantOfRequest(request: MessageShape<DescMessage>): string {
  const { tenantId } = request as { readonly tenantId?: unknown };
  return typeof tenantId === 'string' ? tenantId : '';
}

/** The tenant that a call is bound to. PERMISSION_DENIED when a key reaches beyond its own. */
function resolveTenant(principal: Principal, scope: Scope, requested: string): TenantId | undefined {
  if (scope === 'platform') return undefined;
  if (principal.tenantId !== undefined) return ownTenant(principal.tenantId, requested);
  if (requested === '' && scope === 'tenants') return undefined;
  if (requested === '' && scope === 'any') return PLATFORM as TenantId;
  return parseTenantId(requested);
}

function wrongRole(principal: Principal, roles: readonly string[]): DispatchError {
  const needed = roles.length === 1 ? `a ${roles[0]} key` : `a key with one of the roles ${roles.join(', ')}`;
  const message = `this call needs ${needed}; this one is a ${principal.role}’s`;
  const reason = roles.length === 1 ? 'PLATFORM_KEY_REQUIRED' : 'ROLE_REQUIRED';
  return new DispatchError('PERMISSION_DENIED', message, { reason });
}

/** The tenant of a tenant key, if the request names no other. */
export function ownTenant(own: TenantId, requested: string): TenantId {
  if (requested === '' || requested === own) return own;
  throw new DispatchError('PERMISSION_DENIED', 'the key belongs to another tenant than the request names', {
    reason: 'TENANT_MISMATCH',
  });
}

/** The tenant of a `tenant` call. */
export function tenantOf(context: CallContext): TenantId {
  if (context.tenantId === undefined) throw new Error('a tenant call without a tenant');
  return context.tenantId;
}
