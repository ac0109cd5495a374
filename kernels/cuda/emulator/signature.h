// What the compiler deduced of each kernel's parameters, in the codes of signatures.py.
// Included by emulator.h, inside its namespace.
template <class T> constexpr char code() {        // NumPy's type characters; V: any other type
    if (std::is_same_v<T, _Float16>) return 'e';
    if (std::is_floating_point_v<T>) return sizeof(T) == 4 ? 'f' : 'd';
    if (!std::is_integral_v<T>) return 'V';
    const char* by_size = std::is_signed_v<T> ? "?bh?i???q" : "?BH?I???Q";
    return std::is_same_v<T, bool> ? '?' : by_size[sizeof(T)];
}
template <class... A> struct Codes {                // of each parameter one, behind a P if it is a pointer
    char text[2 * sizeof...(A) + 1] = {};
    constexpr Codes() {
        char* end = text;
        ((std::is_pointer_v<A> ? void(*end++ = 'P') : void(),
          *end++ = code<std::remove_cv_t<std::remove_pointer_t<A>>>()), ...);
    }
};
template <class... A> inline constexpr Codes<A...> codes;
template <auto KERNEL_FUNCTION, class... A, size_t... I>
inline void call_with(void (*)(A...), void** a, std::index_sequence<I...>) { KERNEL_FUNCTION(*(A*)a[I]...); }
template <auto KERNEL_FUNCTION, class... A> constexpr Kernel kernel_of(const char* name, void (*)(A...)) {
    return {name, [](void** a) {
        call_with<KERNEL_FUNCTION>((void (*)(A...))nullptr, a, std::index_sequence_for<A...>());
    }, codes<A...>.text};
}
#define EMULATED_KERNEL(name) emulator::kernel_of<name>(#name, name),
