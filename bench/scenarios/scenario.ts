// What a scenario is: a product and, where there is one, a floor, each measured for some seconds when asked.

/** Things per second, or a set of named figures. */
export type Measured =
  | { readonly perSecond: number }
  | { readonly figures: Readonly<Record<string, number>> };

/** Where to measure. */
export type Bench = {
  /** Maintenance database of a PostgreSQL server, as a superuser. */
  readonly serverUrl: string;
  readonly seconds: number;
};

export type Scenario = {
  readonly name: string;
  /** What the two numbers are, in a line. */
  readonly about: string;
  /** It takes minutes or gigabytes: run only when it is asked for by name. */
  readonly isLong?: boolean;
  /** Starts what is measured; it stays up over the rounds. */
  readonly start: (bench: Bench) => Promise<
    AsyncDisposable & {
      readonly product: () => Promise<Measured>;
      readonly floor: (() => Promise<Measured>) | undefined;
    }
  >;
};
